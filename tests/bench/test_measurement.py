"""One optimizer beside the baseline: what is not a time is known exactly."""

import pytest
import torch

from steppe.bench import measurement
from steppe.bench.measurement import measure
from steppe.bench.optimizers import MeasuredOptimizer, find_measured
from steppe.bench.shapes import uniform
from steppe.bench.timing import host_seconds

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "engine", "state", "least"),
    [
        ("adamw-fused", None, 8 * 1000 + 4 * 10, 28 * 1000),
        ("dualadam", "cpu", 8 * 1000 + 8 * 10, 28 * 1000),
        ("adamcm-keeping", "cpu", 32 * 1000 + 96 * 10, 32 * 1000),
        ("adamcm-replacing", "cpu", 32 * 1000 + 96 * 10, 44 * 1000),
    ],
)
def test_bytes_are_counted_on_what_was_stepped(
    name: str, engine: str | None, state: int, least: int
) -> None:
    found = measure("toy", uniform(10, 100), find_measured(name), 2, CPU)
    assert (found.model, found.optimizer, found.engine) == ("toy", name, engine)
    assert found.numbers == 1000
    assert found.parameter_bytes == 4000
    assert found.state_bytes == state
    assert found.least_bytes == least
    assert found.ratio.low <= found.ratio.value <= found.ratio.high
    assert found.ratio.value == pytest.approx(found.seconds / found.baseline_seconds)


def test_shares_follow_from_the_numbers(found) -> None:
    one = found()
    # In 2 ms 42 MB could have been copied, and 28 had to be.
    assert one.excess == pytest.approx(1.5)
    assert one.state_per_number == 8.0
    assert one.extra == 0.025
    # Copying 28 MB takes 1.33 ms of the baseline's 4.
    assert one.copy_ratio == pytest.approx(1 / 3)
    assert found(extra_bytes=None).extra is None


def test_host_time_has_no_copy_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = []
    time_in_turn = measurement.time_in_turn

    def spy(actions, count: int, device: torch.device, timer) -> list[list[float]]:
        rounds.append((len(actions), count, timer))
        return time_in_turn(actions, count, device, timer)

    monkeypatch.setattr(measurement, "time_in_turn", spy)
    one = measure("toy", uniform(10, 100), find_measured("adamcm-replacing"), 2, CPU, host=True)
    assert rounds == [(2, 40, host_seconds)]
    assert (one.bandwidth, one.excess, one.copy_ratio, one.extra_bytes) == (None,) * 4
    assert one.least_bytes == 44 * 1000


def test_the_baseline_keeps_float32_beside_weights_of_24_bits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    built = []
    build = MeasuredOptimizer.build

    def spy(*args: object) -> torch.optim.Optimizer:
        built.append(build(*args))
        return built[-1]

    monkeypatch.setattr(MeasuredOptimizer, "build", spy)
    one = measure("toy", uniform(2, 100), find_measured("dualadam-24bit"), 2, CPU)
    assert (one.dtype, one.parameter_bytes) == ("bfloat16", 400)
    dtypes = [each.param_groups[0]["params"][0].dtype for each in built]
    assert dtypes == [torch.bfloat16, torch.float32]


def test_a_step_that_takes_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurement, "seconds", lambda *_: 28.0)
    with pytest.raises(ValueError, match=r"a step takes 28\.0 s, and those of at most 5 s"):
        measure("toy", uniform(2, 100), find_measured("dualadam"), 2, CPU)
