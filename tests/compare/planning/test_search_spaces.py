"""Every optimizer is tuned over a declared space, at random points that all of them share."""

import hashlib
import json
import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, kstest
from torch.optim import Optimizer

from steppe._shared.recipes import Recipe, find_recipe
from steppe.compare.planning.search_spaces import (
    Choice,
    Range,
    find_defaults,
    find_space,
    space_as_json,
    trial_seed,
    trial_settings,
)

WEIGHT_DECAY = Range(1e-5, 3.0, log=True)
SWITCH = Range(0.05, 0.5, log=True)
DECAY = Range(0.7, 0.99)
BETA1 = Range(0.8, 0.98)
RHO = Range(0.01, 0.5, log=True)


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
        ("adamw+asam", {"rho": Range(0.1, 5.0, log=True)}),
        ("adamw+msam", {"rho": Range(0.02, 2.0, log=True)}),
        ("adamw+beta1", {"beta1": BETA1}),
        ("radam+ema", {}),
        ("nadam+2epochs", {}),
        ("dualadamcm+sam", {"switch": SWITCH, "priority_decay": DECAY, "rho": RHO}),
    ],
)
def test_lr_and_weight_decay_and_the_knob_that_is_its_own(name: str, own) -> None:
    lr = find_recipe(name).cls([torch.zeros(1, requires_grad=True)]).defaults["lr"]
    space = find_space(find_recipe(name))
    # Three decades around the class's own, to four digits.
    assert space["lr"].log
    assert space["lr"].low == pytest.approx(lr / 10**1.5, rel=1e-3)
    assert space["lr"].high == pytest.approx(lr * 10**1.5, rel=1e-3)
    assert space == {"lr": space["lr"], "weight_decay": WEIGHT_DECAY, **own}


def test_what_is_fixed_is_not_searched() -> None:
    assert find_space(find_recipe("dualadam"), {"lr": 1.0, "switch": 0.1}) == {
        "weight_decay": WEIGHT_DECAY
    }
    assert find_space(find_recipe("lbfgs")) == {"lr": Range(0.03162, 31.62, log=True)}


@pytest.mark.parametrize(
    "name", ["sgd", "sgd-momentum", "torch.optim:SGD", "sgdcm", "sgdcg", "sgd+sam"]
)
def test_sgds_lr_reaches_far_above_its_default(name: str) -> None:
    assert find_space(find_recipe(name))["lr"] == Range(1e-3, 1.0, log=True)


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


def share(dimension: Range, value: float) -> float:
    """Invert :meth:`Range.at`."""
    if dimension.log:
        return math.log(value / dimension.low) / math.log(dimension.high / dimension.low)
    return (value - dimension.low) / (dimension.high - dimension.low)


def cube(name: str, study_seed: int, number: int) -> dict[str, float]:
    """Return an optimizer's trial as a point of the unit cube."""
    recipe = find_recipe(name)
    space = find_space(recipe)
    settings = trial_settings(space, find_defaults(recipe, space), study_seed, number)
    assert settings.keys() == space.keys()
    return {each: share(space[each], settings[each]) for each in space}


def test_a_trial_is_the_same_point_of_the_cube_whatever_the_optimizer() -> None:
    """They span different ranges; values have four digits."""
    for number in range(20):
        whole = cube("dualadamcm+beta1+sam", 0, number)
        for name in ("sgd", "adamw", "dualadam", "adamcm+sam", "nadam+beta1", "schedule-free"):
            for hyperparameter, place in cube(name, 0, number).items():
                assert place == pytest.approx(whole[hyperparameter], abs=1e-3)


def test_a_trials_point_is_a_hash_of_study_number_and_name() -> None:
    """The same on every machine, in every version: a smaller pool is the first of a larger one."""
    space = {"lr": Range(0.0, 1.0), "rho": Range(0.0, 1.0)}
    for number in (0, 23):
        settings = trial_settings(space, {"capacity": 5.0, "lr": 7.0}, 3, number)
        assert settings.pop("capacity") == 5.0
        for name, found in settings.items():
            digest = hashlib.sha256(f"setting/3/{number}/{name}".encode()).hexdigest()
            assert found == pytest.approx(int(digest[:16], 16) / 2**64, rel=1e-3)


def test_another_study_seed_changes_everything() -> None:
    points = [[cube("dualadamcm+sam", seed, number) for number in range(50)] for seed in (0, 1)]
    for one, other in zip(*points, strict=True):
        assert all(one[name] != other[name] for name in one)
    seeds = [{trial_seed(seed, "pool", number) for number in range(50)} for seed in (0, 1)]
    assert not seeds[0] & seeds[1]


@pytest.mark.thorough
def test_points_are_uniform_and_independent() -> None:
    """Kolmogorov and Smirnov find nothing in 2 000 trials, nor does any correlation."""
    trials = [cube("dualadamcm+beta1+sam", 0, number) for number in range(2_000)]
    places = np.array([list(trial.values()) for trial in trials]).T
    assert len(places) == 6
    for each in places:
        assert kstest(each, "uniform").pvalue > 0.01
    # Three standard errors, with 15 pairs of hyperparameters, and each with the trial before.
    assert np.abs(np.corrcoef(places) - np.eye(6)).max() < 3.3 / math.sqrt(2_000)
    for each in places:
        assert abs(np.corrcoef(each[1:], each[:-1])[0, 1]) < 3.3 / math.sqrt(2_000)


def test_choices_are_equally_likely() -> None:
    space = {"capacity": Choice((5, 10, 20))}
    drawn = [trial_settings(space, {}, 0, number)["capacity"] for number in range(900)]
    counts = [drawn.count(each) for each in (5, 10, 20)]
    assert sum(counts) == 900
    assert chisquare(counts).pvalue > 0.01


def test_no_two_trials_share_a_seed() -> None:
    pool = [trial_seed(0, "pool", number) for number in range(1_000)]
    others = [trial_seed(0, phase, n) for phase in ("default", "recommended") for n in range(3)]
    assert len({*pool, *others}) == 1_006
    # What torch, NumPy and Python take.
    assert all(0 <= seed < 2**32 for seed in pool + others)
    assert kstest(np.array(pool) / 2**32, "uniform").pvalue > 0.01


def test_a_range_runs_evenly_or_by_the_logarithm() -> None:
    assert [Range(0.0, 2.0).at(x) for x in (0, 0.25, 0.5)] == [0.0, 0.5, 1.0]
    assert [Range(1e-4, 1.0, log=True).at(x) for x in (0, 0.25, 0.75)] == [1e-4, 1e-3, 0.1]
    assert [Choice((1, 2, 4)).at(x) for x in (0.0, 0.33, 0.34, 0.999)] == [1, 1, 2, 4]


def test_a_description_is_the_same_after_json() -> None:
    content = space_as_json({"lr": Range(1e-4, 1e-2, log=True), "C": Choice((5, 10))})
    assert content == {"lr": {"low": 1e-4, "high": 1e-2, "log": True}, "C": {"choices": [5, 10]}}
    assert json.loads(json.dumps(content)) == content
