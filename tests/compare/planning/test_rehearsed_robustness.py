"""What --robustness cannot measure is said before any trial, with the user's own lines."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from steppe.compare.metrics.robustness import RobustnessSettings
from steppe.compare.planning.rehearsal import new_model, rehearse
from steppe.compare.tasks.task import Task
from steppe.compare.tasks.trace import TaskError
from steppe.compare.training.run import RunContext, RunSettings
from steppe.landscape import Corruption

SETTINGS = RunSettings(
    "own", "", None, "", epochs=2, steps_per_epoch=3, batch_size=8, robustness=True
)


def task(settings: RobustnessSettings) -> Task:
    inputs = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    return Task(
        name="own",
        model=lambda: nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)),
        train=(inputs, (inputs.sum(1) > 0).long()),
        validation=0.2,
        test=0.2,
        loss=F.cross_entropy,
        robustness=settings,
    )


def misspelt(model: nn.Module, batches: Any) -> float:
    return model.no_such_thing  # type: ignore[return-value]


def several(model: nn.Module, batches: Any) -> Any:
    return torch.ones(2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (RobustnessSettings(measures={"misspelt": misspelt}), "no attribute 'no_such_thing'"),
        (RobustnessSettings(measures={"several": several}), "must return a number, got Tensor"),
        (
            RobustnessSettings(perturbations=(Corruption("blur", 1),)),
            "needs inputs that are images",
        ),
    ],
    ids=["misspelt", "several", "no images"],
)
def test_what_cannot_be_measured_is_said(
    settings: RobustnessSettings, message: str, context: RunContext
) -> None:
    own = task(settings)
    with pytest.raises(TaskError, match=f"robustness cannot be measured.*{message}") as caught:
        rehearse(own.load(), new_model(own), SETTINGS, context)
    if "no_such_thing" in message:
        assert "in misspelt: return model.no_such_thing" in caught.value.__notes__[-1]


def test_what_can_be_measured_leaves_no_trace(context: RunContext) -> None:
    own = task(RobustnessSettings(measures={"one": lambda model, batches: len(batches)}))
    model, other = new_model(own), new_model(own)
    rehearse(own.load(), model, SETTINGS, context)
    # Its first loss counts a batch in the BatchNorm.
    rehearse(own.load(), other, replace(SETTINGS, robustness=False), context)
    values = other.state_dict()
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())
    assert model.training
