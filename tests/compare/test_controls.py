"""What switches is never shown without what it must beat."""

import pytest

from steppe.compare.controls import CONTROL, control_of, find_recipes
from steppe.compare.optimizers import DEFAULT, find_recipe


def names(*asked: str) -> list[str]:
    return [recipe.name for recipe in find_recipes(asked)]


@pytest.mark.parametrize(
    ("name", "control"),
    [
        ("dualadam", "adam+warmup"),
        ("dualadam-scale-free", "adam+warmup"),
        ("dualadam+sam", "adam+warmup+sam"),
        ("dualadamcm", "adamcm+warmup"),
        ("dualadamcm+sam", "adamcm+warmup+sam"),
        ("steppe:DualAdamCM", "adamcm+warmup"),
    ],
)
def test_a_control_is_the_same_but_for_the_inverse_part(name: str, control: str) -> None:
    assert control_of(find_recipe(name)) == control
    missing = [CONTROL] if control == CONTROL else [CONTROL, control]
    assert names("adamw", name) == ["adamw", *missing, name]


def test_the_first_named_stays_the_baseline() -> None:
    assert names("dualadam", "adamw") == ["dualadam", "adam+warmup", "adamw"]
    assert names("dualadamcm") == ["dualadamcm", "adam+warmup", "adamcm+warmup"]


def test_a_control_is_not_added_twice_nor_without_need() -> None:
    assert names(*DEFAULT) == list(DEFAULT)
    assert names("invadam", "SGD") == ["invadam", "sgd"]
    assert names("dualadam", "dualadam+sam", "adam+warmup") == [
        "dualadam",
        "adam+warmup+sam",
        "dualadam+sam",
        "adam+warmup",
    ]


def test_repeated_names_count_once() -> None:
    assert names("AdamW", "sgd", "adamw") == ["adamw", "sgd"]
