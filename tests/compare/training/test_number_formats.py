"""State in bfloat16 and 8 bits trains like state in full."""

import math

import pytest

from steppe._shared.recipes import find_recipe
from steppe.compare.planning.presets import USUAL
from steppe.compare.planning.study import StudyOptions, plan_study
from steppe.compare.tasks.source import find_task
from steppe.compare.training.run import Run, RunContext
from steppe.compare.training.train import train


@pytest.mark.parametrize(("name", "bound"), [("dualadam", 0.0078), ("adamcm", 0.0023)])
def test_digits_are_learnt_alike_in_every_format(
    name: str, bound: float, context: RunContext
) -> None:
    """One seed's test loss after 4 epochs, where learning is at its fastest.

    The bound is a fifth of the full-precision loss's standard error over five seeds. Nine tenths of
    the parameters are in tensors large enough for 8 bits: 8 bytes of Adam's state become 2.6.
    """
    names = [name, f"{name}-bf16", f"{name}-int8"]
    study = plan_study("digits", StudyOptions(names, epochs=4), USUAL, context)
    loaded = find_task("digits").task().load()
    defaults = {each.name: each.defaults for each in study.contenders}
    full, *rounded = (
        train(Run(study.setup, find_recipe(each), defaults[each], seed=0), loaded, context)
        for each in names
    )
    assert full.final.test_loss < 0.5 * math.log(10)  # half of what guessing gives
    for outcome, share in zip(rounded, (0.51, 0.33), strict=True):
        assert abs(outcome.final.test_loss - full.final.test_loss) < bound
        assert outcome.costs.state_bytes < share * full.costs.state_bytes
