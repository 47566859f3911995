"""Every optimizer is tuned over a declared space, at points that are nobody's luck."""

import json
import math

import pytest
import torch
from scipy.stats import qmc
from torch.optim import Optimizer

from steppe._shared.recipes import Recipe, find_recipe
from steppe.compare.planning.search_spaces import (
    Choice,
    Range,
    find_defaults,
    find_space,
    search_points,
    space_as_json,
)

WEIGHT_DECAY = Range(1e-5, 1e-1, log=True)
SWITCH = Range(0.05, 0.5, log=True)
DECAY = Range(0.7, 0.99)
RHO = Range(0.01, 0.2, log=True)


class NoDefault(Optimizer):
    def __init__(self, params, lr) -> None:
        super().__init__(params, {"lr": lr})


class NoLr(Optimizer):
    def __init__(self, params) -> None:
        super().__init__(params, {})


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("adamw", {}),
        ("dualadam", {"switch": SWITCH}),
        ("adam+warmup", {"switch": SWITCH}),
        ("adamcm", {"priority_decay": DECAY}),
        ("adamcg", {"priority_decay": DECAY}),
        ("adamw+sam", {"rho": RHO}),
        ("dualadamcm+sam", {"switch": SWITCH, "priority_decay": DECAY, "rho": RHO}),
    ],
)
def test_lr_and_weight_decay_and_the_knob_that_is_its_own(name: str, own) -> None:
    lr = find_recipe(name).cls([torch.zeros(1, requires_grad=True)]).defaults["lr"]
    space = find_space(find_recipe(name))
    assert space["lr"] == Range(lr / 10, lr * 10, log=True)
    assert space == {"lr": space["lr"], "weight_decay": WEIGHT_DECAY, **own}


def test_what_is_fixed_is_not_searched() -> None:
    assert find_space(find_recipe("dualadam"), {"lr": 1.0, "switch": 0.1}) == {
        "weight_decay": WEIGHT_DECAY
    }
    assert find_space(find_recipe("lbfgs")) == {"lr": Range(0.1, 10.0, log=True)}


def test_defaults_are_the_classes_own() -> None:
    def defaults(name: str) -> dict[str, float]:
        recipe = find_recipe(name)
        return find_defaults(recipe, find_space(recipe))

    assert defaults("adamw") == {"lr": 1e-3, "weight_decay": 1e-2}
    assert defaults("sgd-momentum") == {"lr": 1e-3, "weight_decay": 0}
    assert defaults("adamcm+sam") == {
        "lr": 1e-3,
        "weight_decay": 0.0,
        "priority_decay": 0.7,
        "rho": 0.05,
    }
    # 1/8e-5 = 12 500 steps of the 200 · 391 that DualAdam's authors took
    switch = defaults("dualadam")["switch"]
    assert switch == pytest.approx(12_500 / (200 * math.ceil(50_000 / 128)), abs=5e-4)


def test_a_class_without_default_lr_needs_one() -> None:
    recipe = Recipe("nodefault", NoDefault)
    with pytest.raises(ValueError, match="nodefault has no default lr: give one with --lr"):
        find_space(recipe)
    assert find_space(recipe, {"lr": 0.3}) == {}
    assert find_space(Recipe("nolr", NoLr)) == {}


@pytest.mark.parametrize("budget", [0, 1, 2, 3, 8, 21])
def test_the_defaults_come_first_then_the_same_points_of_the_cube(budget: int) -> None:
    recipes = [find_recipe(name) for name in ("adamw", "dualadam", "adamcm+sam")]
    cubes = []
    for recipe in recipes:
        space = find_space(recipe)
        defaults = {**find_defaults(recipe, space), "capacity": 5.0}
        points = search_points(space, defaults, budget)
        assert len(points) == budget
        assert points[:1] == [defaults][:budget]
        assert all(point["capacity"] == 5.0 for point in points)
        cubes.append([[share(space[n], point[n]) for n in space] for point in points[1:]])
    # Sobol's sequence as SciPy scrambles it with seed 0; values have four digits.
    sobol = qmc.Sobol(8, rng=0).random_base2(5)
    for cube in cubes:
        for point, expected in zip(cube, sobol, strict=False):
            assert point == pytest.approx(expected[: len(point)], abs=1e-3)


def share(dimension: Range, value: float) -> float:
    """Invert :meth:`Range.at`."""
    if dimension.log:
        return math.log(value / dimension.low) / math.log(dimension.high / dimension.low)
    return (value - dimension.low) / (dimension.high - dimension.low)


def test_a_smaller_budgets_points_are_the_first_of_a_larger_one() -> None:
    recipe = find_recipe("dualadamcm+sam")
    space = find_space(recipe)
    defaults = find_defaults(recipe, space)
    most = search_points(space, defaults, 40)
    for budget in range(41):
        assert search_points(space, defaults, budget) == most[:budget]
    assert len({tuple(point.values()) for point in most}) == 40


def test_all_points_are_inside_and_spread() -> None:
    space = {"lr": Range(1e-4, 1e-2, log=True), "C": Choice((5, 10, 20)), "λ": Range(0.7, 0.99)}
    points = search_points(space, {"lr": 1e-3, "C": 5, "λ": 0.7}, 49)[1:]
    assert all(1e-4 <= point["lr"] <= 1e-2 and 0.7 <= point["λ"] <= 0.99 for point in points)
    # Of 48 points, the first of a sequence that fills the cube evenly, each third holds 16 or so,
    # and each half of the decades 24.
    assert all(12 <= sum(p["C"] == each for p in points) <= 20 for each in (5, 10, 20))
    assert 20 <= sum(point["lr"] < 1e-3 for point in points) <= 28


def test_a_range_runs_evenly_or_by_the_logarithm() -> None:
    assert [Range(0.0, 2.0).at(x) for x in (0, 0.25, 0.5)] == [0.0, 0.5, 1.0]
    assert [Range(1e-4, 1.0, log=True).at(x) for x in (0, 0.25, 0.75)] == [1e-4, 1e-3, 0.1]
    assert [Choice((1, 2, 4)).at(x) for x in (0.0, 0.33, 0.34, 0.999)] == [1, 1, 2, 4]


def test_a_description_is_the_same_after_json() -> None:
    content = space_as_json({"lr": Range(1e-4, 1e-2, log=True), "C": Choice((5, 10))})
    assert content == {"lr": {"low": 1e-4, "high": 1e-2, "log": True}, "C": {"choices": [5, 10]}}
    assert json.loads(json.dumps(content)) == content
