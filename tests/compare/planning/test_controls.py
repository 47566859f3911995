"""What is new is never shown without what it must beat."""

import pytest

from steppe._shared.recipes import DEFAULT, find_recipe
from steppe.compare.planning.controls import (
    contenders_controlled_by,
    controls_of,
    followed_contender,
    followed_settings,
    recipes_with_controls,
)


def names(*asked: str) -> list[str]:
    return [recipe.name for recipe in recipes_with_controls(asked)]


@pytest.mark.parametrize(
    ("name", "controls"),
    [
        ("dualadam", ["adam+warmup"]),
        ("dualadam-scale-free", ["adam+warmup"]),
        ("dualadam+sam", ["adam+warmup+sam"]),
        ("miadam", ["adam+warmup"]),
        ("miadam+sam", ["adam+warmup+sam"]),
        ("dualadamcm", ["adam+warmup", "adamcm+warmup"]),
        ("dualadamcm+sam", ["adam+warmup+sam", "adamcm+warmup+sam"]),
        ("steppe:DualAdamCM", ["adam+warmup", "adamcm+warmup"]),
        ("adamcm", ["adam+2lr"]),
        ("adamcm-authors", ["adam+2lr"]),
        ("adamcm+sam", ["adam+2lr+sam"]),
        ("sgdcm", ["sgd-momentum+2lr"]),
        ("sgdcm+sam", ["sgd-momentum+2lr+sam"]),
        # A control, or without critical momenta: they need none.
        ("adamcm+warmup", []),
        ("adam+2lr", []),
        ("adamcg", []),
        ("invadam", []),
        ("adamw+sam", []),
    ],
)
def test_a_control_is_the_same_but_for_what_is_new(name: str, controls: list[str]) -> None:
    assert list(controls_of(find_recipe(name))) == controls
    if "+2lr" not in name:
        assert names("adamw", name) == ["adamw", *controls, name]


def test_the_first_named_stays_the_baseline() -> None:
    assert names("dualadam", "adamw") == ["dualadam", "adam+warmup", "adamw"]
    assert names("dualadamcm") == ["dualadamcm", "adam+warmup", "adamcm+warmup"]
    assert names("adamcm", "sgd") == ["adamcm", "adam+2lr", "sgd"]


def test_a_control_is_not_added_twice_nor_without_need() -> None:
    assert names("invadam", "SGD") == ["invadam", "sgd"]
    assert names("dualadam", "dualadam+sam", "adam+warmup") == [
        "dualadam",
        "adam+warmup+sam",
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
        "adam+2lr",
        "adamcm",
        "adamw+sam",
    ]


def test_repeated_names_count_once() -> None:
    assert names("AdamW", "sgd", "adamw") == ["adamw", "sgd"]


def test_there_must_be_one() -> None:
    with pytest.raises(ValueError, match="no optimizer is named"):
        recipes_with_controls([])


def test_only_the_doubled_follow_and_there_must_be_someone() -> None:
    recipes = recipes_with_controls(["adamw", "adamcm", "sgdcm+sam"])
    leaders = {recipe.name: followed_contender(recipe, recipes) for recipe in recipes}
    assert leaders == {
        "adamw": "",
        "adam+2lr": "adamcm",
        "adamcm": "",
        "sgd-momentum+2lr+sam": "sgdcm+sam",
        "sgdcm+sam": "",
    }
    with pytest.raises(ValueError, match=r"adam\+2lr is at twice the lr of critical momenta"):
        followed_contender(find_recipe("adam+2lr"), recipes_with_controls(["adamw", "adam+2lr"]))


def test_who_follows_takes_over_all_it_has_and_doubles_lr() -> None:
    leader = {"lr": 3e-3, "weight_decay": 1e-2, "priority_decay": 0.8, "rho": 0.1}
    taken = followed_settings(find_recipe("adam+2lr+sam"), leader)
    assert taken == {"lr": 6e-3, "weight_decay": 1e-2, "rho": 0.1}
    assert followed_settings(find_recipe("adam+2lr"), {"lr": 1.0}) == {"lr": 2.0}


def test_a_control_knows_beside_what_it_is_read() -> None:
    recipes = recipes_with_controls(["adamw", "dualadam", "dualadamcm"])
    beside = {recipe.name: contenders_controlled_by(recipe, recipes) for recipe in recipes}
    assert beside["adam+warmup"] == ("dualadam", "dualadamcm")
    assert beside["adamcm+warmup"] == ("dualadamcm",)
    assert beside["adamw"] == beside["dualadam"] == ()
