"""A task's own schedule, under the warm-up that a study or an optimizer adds."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from steppe.compare.training.own_schedule import OwnSchedule

SCHEDULES: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    # From the last lr, and from the number of the step.
    "exponential": lambda optimizer: lr_scheduler.ExponentialLR(optimizer, 0.8),
    "lambda": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step)),
    "one cycle": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, [0.4, 0.2], total_steps=20),
}


def optimizer() -> torch.optim.Optimizer:
    model = nn.Linear(2, 1)
    groups = [{"params": [model.weight]}, {"params": [model.bias], "lr": 0.05}]
    return torch.optim.SGD(groups, lr=0.1)


def rising(step: int) -> float:
    return min(1.0, (step + 1) / 4)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_factor_multiplies_what_the_schedule_says(name: str) -> None:
    alone, warmed = optimizer(), optimizer()
    plain = SCHEDULES[name](alone)
    own = OwnSchedule(SCHEDULES[name](warmed), warmed, rising)
    for step in range(10):
        expected = [group["lr"] * rising(step) for group in alone.param_groups]
        assert [group["lr"] for group in warmed.param_groups] == pytest.approx(expected, rel=1e-12)
        for each, schedule in ((alone, plain), (warmed, own)):
            each.step()
            schedule.step()


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_goes_on_from_its_state(name: str) -> None:
    whole = optimizer()
    own = OwnSchedule(SCHEDULES[name](whole), whole, rising)
    for _ in range(3):
        whole.step()
        own.step()
    state, of_optimizer = own.state_dict(), whole.state_dict()
    other = optimizer()
    resumed = OwnSchedule(SCHEDULES[name](other), other, rising)
    other.load_state_dict(of_optimizer)
    resumed.load_state_dict(state)
    for _ in range(4):
        for each, schedule in ((whole, own), (other, resumed)):
            each.step()
            schedule.step()
        rates = [[group["lr"] for group in each.param_groups] for each in (whole, other)]
        assert rates[0] == rates[1]
