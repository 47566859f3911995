"""A baseline that was held up is found by the others of its model."""

from steppe.bench.disturbance import disturbed


def test_the_slow_blocks_of_a_model_are_found(found) -> None:
    calm = found(baseline_seconds=0.010)
    slower = found(optimizer="invadam", baseline_seconds=0.0149)
    held_up = found(optimizer="adamcm", baseline_seconds=0.0151)
    larger = found(model="large", baseline_seconds=1.0)
    assert disturbed([held_up, calm, slower, larger]) == {held_up}


def test_one_block_has_nothing_to_be_compared_with(found) -> None:
    assert not disturbed([found()])
    assert not disturbed([])
