"""When DualAdam, DualAdamCM and MIAdam switch: by a rate of steps, or by a share of the run."""

import math
import pickle

import numpy as np
import pytest
import torch

import steppe
from steppe._engines.base.bind import bind
from steppe.rules import switch_weights

SWITCHING = ["DualAdam", "DualAdamCM", "MIAdam"]


def stepped(optimizer: torch.optim.Optimizer, steps: int = 1) -> torch.optim.Optimizer:
    for _ in range(steps):
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.ones_like(p)
        optimizer.step()
    return optimizer


def made(name: str, **options: object) -> torch.optim.Optimizer:
    return getattr(steppe, name)([torch.ones(3, requires_grad=True)], **options)


@pytest.mark.parametrize("name", SWITCHING)
@pytest.mark.parametrize(
    ("given", "rate"),
    [
        ({}, 1 / 100),
        ({"total_steps": 450}, 1 / 72),
        ({"total_steps": 78_125}, 8e-5),
        ({"total_steps": 1000, "switch": 0.5}, 1 / 500),
        ({"total_steps": 1000, "switch": 1.0}, 1 / 1000),
        ({"total_steps": 3}, 1.0),
        ({"total_steps": None, "switch_rate": 0.25}, 0.25),
        ({"switch_rate": 0.0}, 0.0),
    ],
)
def test_the_rate_is_one_over_a_share_of_the_run(
    name: str, given: dict[str, object], rate: float
) -> None:
    optimizer = made(name, **given)
    assert optimizer.param_groups[0]["switch_rate"] == pytest.approx(rate, rel=1e-15)
    assert optimizer.defaults["switch_rate"] == optimizer.param_groups[0]["switch_rate"]
    assert not {"total_steps", "switch"} & optimizer.param_groups[0].keys()


@pytest.mark.parametrize("name", SWITCHING)
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"total_steps": 0}, "total_steps=0 is not valid: expected an integer from 1 to 2"),
        ({"total_steps": 1e4}, "total_steps=10000.0 is not valid: expected an integer"),
        ({"total_steps": True}, "total_steps=True is not valid"),
        ({"switch": 0.0}, r"switch=0.0 is not valid: expected a number in \(0, 1\]"),
        ({"switch": 16}, "switch=16 is not valid"),
        ({"switch": 0.5}, "switch=0.5 is not valid without total_steps: expected the number of"),
        ({"total_steps": 10**400}, r"total_steps=10+ is not valid: expected an integer from 1"),
        (
            {"total_steps": 10, "switch_rate": 0.1},
            "total_steps=10 is not valid beside switch_rate=0.1: expected one of the two",
        ),
    ],
)
def test_what_says_nothing_clear_is_refused(
    name: str, given: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        made(name, **given)


@pytest.mark.parametrize("name", SWITCHING)
def test_groups_have_rates_of_their_own_but_no_runs(name: str) -> None:
    first, second, third = (torch.ones(2, requires_grad=True) for _ in range(3))
    groups = [{"params": [first]}, {"params": [second], "switch_rate": 0.5}]
    optimizer = getattr(steppe, name)(groups, total_steps=625)
    assert [group["switch_rate"] for group in optimizer.param_groups] == [1 / 100, 0.5]
    for option in ({"total_steps": 10}, {"switch": 0.5}):
        with pytest.raises(ValueError, match="is not valid in a group: expected it in the const"):
            optimizer.add_param_group({"params": [third], **option})
    assert len(optimizer.param_groups) == 2


@pytest.mark.parametrize("name", SWITCHING)
def test_diagnostics_count_the_steps_until_it_is_adam(name: str) -> None:
    optimizer = made(name, total_steps=450)
    assert math.isnan(optimizer.diagnostics()["steps_to_switch"])
    left = [stepped(optimizer).diagnostics()["steps_to_switch"] for _ in range(74)]
    assert left == [*range(71, 0, -1), 0.0, 0.0, 0.0]
    assert stepped(made(name, switch_rate=0)).diagnostics()["steps_to_switch"] == math.inf


def test_alpha_is_zero_when_no_steps_are_left() -> None:
    optimizer = made("DualAdam", total_steps=450)
    for _ in range(73):
        found = stepped(optimizer).diagnostics()
        assert (found["alpha"] == 0) == (found["steps_to_switch"] == 0)


def test_the_last_part_of_the_switch_is_whole() -> None:
    """ξ·t is rounded: 49·(1/49) is less than 1, and α would be 1e-16."""
    weights = bind(switch_weights, np)
    for steps in range(1, 3000):
        assert weights(float(steps), 1 / steps) == (1.0, 0.0)
        direct, inverse = weights(steps - 1.0, 1 / steps)
        assert inverse == pytest.approx(1 / steps)
        assert direct == (steps - 1.0) * (1 / steps)


@pytest.mark.parametrize("name", SWITCHING)
def test_checkpoints_keep_the_rate_that_they_had(name: str) -> None:
    saved = stepped(made(name, switch_rate=8e-5)).state_dict()
    resumed = made(name, total_steps=450)
    resumed.load_state_dict(saved)
    assert resumed.param_groups[0]["switch_rate"] == 8e-5
    # An option that is missing takes the class's default, as in torch.
    lacking = [{k: v for k, v in saved["param_groups"][0].items() if k != "switch_rate"}]
    older = made(name, total_steps=450)
    older.load_state_dict({**saved, "param_groups": lacking})
    assert older.param_groups[0]["switch_rate"] == 1 / 100
    assert pickle.loads(pickle.dumps(resumed)).param_groups[0]["switch_rate"] == 8e-5


@pytest.mark.parametrize("name", SWITCHING)
def test_torchs_checkpoints_go_on_with_this_runs_switch(name: str) -> None:
    params = [torch.ones(3, requires_grad=True)]
    saved = stepped(torch.optim.AdamW(params), 5).state_dict()
    warm = made(name, total_steps=450)
    warm.load_state_dict(saved)
    assert warm.param_groups[0]["switch_rate"] == 1 / 72
    assert stepped(warm).diagnostics()["steps_to_switch"] == 72 - 6
