"""What is new is never shown without what it must beat."""

import pytest

from steppe._shared.recipes import DEFAULT, find_recipe
from steppe.compare.planning.controls import (
    contenders_controlled_by,
    controls_of,
    recipes_with_controls,
)


def names(*asked: str) -> list[str]:
    return [recipe.name for recipe in recipes_with_controls(asked)]


@pytest.mark.parametrize(
    ("name", "controls"),
    [
        ("dualadam", ["adam+warmup"]),
        ("dualadam-scale-free", ["adam+warmup"]),
        ("dualadam+sam", ["adam+warmup+sam", "adamw+2epochs"]),
        ("dualadam+ema", ["adam+warmup+ema"]),
        ("dualadam+beta1", ["adam+warmup+beta1"]),
        ("dualadam+2epochs", ["adam+warmup+2epochs"]),
        ("miadam", ["adam+warmup"]),
        ("dualadamcm", ["adam+warmup", "adamcm+warmup"]),
        ("dualadamcm+sam", ["adam+warmup+sam", "adamcm+warmup+sam", "adamw+2epochs"]),
        ("steppe:DualAdamCM", ["adam+warmup", "adamcm+warmup"]),
        ("adamcm", ["adamw+beta1"]),
        ("adamcm+beta1", ["adamw+beta1"]),
        ("adamcm-authors", ["adamw+beta1"]),
        ("adamcm+ema+sam", ["adamw+beta1+ema+sam", "adamw+2epochs"]),
        ("sgdcm", ["sgd-momentum+beta1"]),
        ("sgdcm+sam", ["sgd-momentum+beta1+sam", "adamw+2epochs"]),
        # A control, or without critical momenta: they need none.
        ("adamcm+warmup", []),
        ("adamw+beta1", []),
        ("adamw+2epochs", []),
        ("adamw+ema", []),
        ("adamcg", []),
        ("invadam", []),
        # Two passes a step: as many gradients in twice the epochs.
        ("adamw+sam", ["adamw+2epochs"]),
        ("sgd+sam", ["adamw+2epochs"]),
        ("adamw+asam", ["adamw+2epochs"]),
        ("dualadam+psam", ["adam+warmup+psam", "adamw+2epochs"]),
        # One pass, or little more.
        ("adamw+msam", []),
        ("adamw+random", []),
        ("adamcm+msam", ["adamw+beta1+msam"]),
        ("adamw+latesam", []),
        # No name stands for four times the epochs.
        ("adamw+2epochs+sam", []),
    ],
)
def test_a_control_is_the_same_but_for_what_is_new(name: str, controls: list[str]) -> None:
    assert list(controls_of(find_recipe(name), find_recipe("adamw"))) == controls
    assert names("adamw", name) == ["adamw", *controls, name]


@pytest.mark.parametrize(
    ("baseline", "control"),
    [
        ("sgd-momentum", "sgd-momentum+2epochs"),
        ("adamw+sam", "adamw+2epochs"),
        ("adamw+msam", "adamw+2epochs"),
        ("adamw+warmup+ema", "adamw+warmup+2epochs+ema"),
        ("torch.optim:SGD", "torch.optim:SGD+2epochs"),
        # It takes as many gradients itself.
        ("adamw+2epochs", "adamw+2epochs"),
    ],
)
def test_equal_compute_is_the_baselines(baseline: str, control: str) -> None:
    found = names(baseline, "dualadam", "adamcm+sam", "adam+sam")
    assert found.count(control) == 1
    assert found[0] == baseline
    assert [name for name in found if "2epochs" in name] == [control]
    recipes = recipes_with_controls([baseline, "dualadam", "adamcm+sam", "adam+sam"])
    beside = contenders_controlled_by(find_recipe(control), recipes)
    assert {"adamcm+sam", "adam+sam"} <= set(beside)
    assert "dualadam" not in beside


def test_the_first_named_stays_the_baseline() -> None:
    assert names("dualadam", "adamw") == ["dualadam", "adam+warmup", "adamw"]
    assert names("dualadamcm") == ["dualadamcm", "adam+warmup", "adamcm+warmup"]
    assert names("adamcm", "sgd") == ["adamcm", "adamw+beta1", "sgd"]
    assert names("adamw+sam", "adamw") == ["adamw+sam", "adamw+2epochs", "adamw"]


def test_a_control_is_not_added_twice_nor_without_need() -> None:
    assert names("invadam", "SGD") == ["invadam", "sgd"]
    assert names("dualadam", "dualadam+sam", "adam+warmup") == [
        "dualadam",
        "adam+warmup+sam",
        "dualadam+2epochs",
        "dualadam+sam",
        "adam+warmup",
    ]
    assert names("adamw", "dualadam", "dualadam-int8") == [
        "adamw",
        "adam+warmup",
        "dualadam",
        "dualadam-int8",
    ]


def test_the_default_list_has_its_controls() -> None:
    assert names(*DEFAULT) == [
        "adamw",
        "adam+warmup",
        "dualadam",
        "adamw+beta1",
        "adamcm",
        "adamw+2epochs",
        "adamw+sam",
    ]


def test_repeated_names_count_once() -> None:
    assert names("AdamW", "sgd", "adamw") == ["adamw", "sgd"]


def test_there_must_be_one() -> None:
    with pytest.raises(ValueError, match="no optimizer is named"):
        recipes_with_controls([])


def test_a_control_knows_beside_what_it_is_read() -> None:
    recipes = recipes_with_controls(["adamw", "dualadam", "dualadamcm"])
    beside = {recipe.name: contenders_controlled_by(recipe, recipes) for recipe in recipes}
    assert beside["adam+warmup"] == ("dualadam", "dualadamcm")
    assert beside["adamcm+warmup"] == ("dualadamcm",)
    assert beside["adamw"] == beside["dualadam"] == ()
