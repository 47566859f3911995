"""Critical momenta's figures on landscapes of two parameters."""

import json
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from figures import cm_ackley, cm_ackley_first_steps, cm_goldstein_price
from steppe._shared.json_values import json_ready
from steppe.functions import ackley


def measured(module: ModuleType, **sizes: Any) -> Mapping[str, Any]:
    data = json.loads(json.dumps(json_ready(module.measure(**sizes)), allow_nan=False))
    module.draw(data).canvas.draw()
    return data


@pytest.mark.parametrize(
    ("module", "sizes"),
    [(cm_goldstein_price, {"starts": 2}), (cm_ackley, {"seeds": 2})],
    ids=["goldstein-price", "ackley"],
)
def test_all_run_from_the_same_places_at_the_same_rates(
    module: ModuleType, sizes: Mapping[str, int]
) -> None:
    data = measured(module, steps=8, rates=(0.01, 0.1), **sizes)
    optimizers = {each["name"]: each for each in data["play"]["optimizers"]}
    assert list(optimizers) == ["adam", "adamcg", "adam+sam", "adamcm", "adamcm+sam"]
    begin = [points[0] for points in optimizers["adam"]["points"]]
    for name, optimizer in optimizers.items():
        assert [points[0] for points in optimizer["points"]] == begin
        assert [each["lr"] for each in optimizer["tried"]] == [0.01, 0.1]
        shown = data["rates"].index(optimizer["settings"]["lr"])
        share = sum(end["kind"] == "global" for end in optimizer["ends"]) / 2
        found = data["reached"][name][shown]
        assert found["share"] == share
        assert 0 <= found["low"] <= share <= found["high"] <= 1
    # Adam's first step is lr long in every coordinate, at the cosine's beginning.
    lr = optimizers["adam"]["settings"]["lr"]
    first = np.array([points[1] for points in optimizers["adam"]["points"]])
    assert np.abs(first - np.array(begin)) == pytest.approx(lr, rel=1e-3)


@pytest.mark.thorough
def test_critical_momenta_leave_the_dents_of_ackley_that_hold_adam() -> None:
    data = measured(cm_ackley, steps=300, seeds=3, rates=(0.1,))
    assert [each["share"] for each in data["reached"]["adamcm"]] == [1.0]
    assert [each["share"] for each in data["reached"]["adam"]] == [0.0]


def test_what_the_buffers_hold_is_summed_up_as_told() -> None:
    """A buffer of gradients that has room holds those along the path, and nothing else."""
    data = measured(cm_ackley_first_steps, steps=5, starts=1)
    found = data["optimizers"]["adamcg"]
    path = torch.tensor(found["path"], dtype=torch.float64)
    gradients = ackley().gradient(path[:-1]).numpy()
    for step in range(1, 6):
        some = gradients[:step]
        expected = np.linalg.norm(some.sum(0)) / np.linalg.norm(some, axis=1).sum()
        assert found["coherence"]["mean"][step - 1] == pytest.approx(expected, rel=1e-3)
    assert np.array(found["stored"]) == pytest.approx(gradients, rel=1e-3, abs=1e-4)
    moved = np.linalg.norm(path - path[0], axis=1)
    assert found["moved"]["mean"] == pytest.approx(moved, rel=1e-3, abs=1e-5)
    # Momenta agree more than gradients: averages turn later.
    momenta = data["optimizers"]["adamcm"]["coherence"]["mean"]
    assert momenta[3] > found["coherence"]["mean"][3]
    assert data["optimizers"]["adam"]["coherence"]["mean"] == []
