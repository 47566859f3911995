"""State in bfloat16 and 8 bits trains like state in full."""

import pytest

from steppe.compare.study import plan
from steppe.compare.train import train


@pytest.mark.parametrize(("name", "bound"), [("dualadam", 0.0044), ("adamcm", 0.020)])
def test_digits_are_learnt_alike_in_every_format(name: str, bound: float) -> None:
    """One seed's test loss after 4 epochs, where learning is at its fastest.

    The bound is the standard error of the full-precision loss over five seeds. Nine tenths of the
    parameters are in tensors large enough for 8 bits: 8 bytes of Adam's state become 2.6.
    """
    names = [name, f"{name}-bf16", f"{name}-int8"]
    study = plan("digits", names, seeds=1, epochs=4, threads=1)
    outcomes = {run.recipe.name: train(run, study.data) for run in study.runs()}
    full, *rounded = (outcomes[each] for each in names)
    assert full.final.test_loss < 0.3
    for outcome, share in zip(rounded, (0.51, 0.33), strict=True):
        assert abs(outcome.final.test_loss - full.final.test_loss) < bound
        assert outcome.state_bytes < share * full.state_bytes
