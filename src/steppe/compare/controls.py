"""What an optimizer that switches is read against, and that it is always there."""

from collections.abc import Iterable

import steppe
from steppe.compare.optimizers import Recipe, find_recipe

# What separates DualAdam from Adam while gradients are small is a linear warm-up and nothing else,
# so it is never shown without this control.
CONTROL = "adam+warmup"


def control_of(recipe: Recipe) -> str:
    """Name what a switching recipe is without its inverse part: the same, warmed up instead.

    Examples
    --------
    >>> control_of(find_recipe("dualadam+sam")), control_of(find_recipe("dualadamcm"))
    ('adam+warmup+sam', 'adamcm+warmup')
    """
    base = "adamcm" if issubclass(recipe.cls, steppe.DualAdamCM) else "adam"
    return f"{base}+warmup+sam" if recipe.sam else f"{base}+warmup"


def find_recipes(names: Iterable[str]) -> tuple[Recipe, ...]:
    """Read the names, drop repetitions, and add the controls that are not named.

    They come before what needs them, but never first: the first is the baseline, and that is the
    user's choice.

    Raises
    ------
    ValueError
        If a name is not known, or there is none at all.
    """
    asked = {recipe.name: recipe for recipe in map(find_recipe, names)}
    if not asked:
        raise ValueError("no optimizer is named")
    known = set(asked)
    ordered: list[Recipe] = []
    for recipe in asked.values():
        missing = [find_recipe(name) for name in _controls(recipe) if name not in known]
        known |= {control.name for control in missing}
        ordered += [*missing, recipe] if ordered else [recipe, *missing]
    return tuple(ordered)


def _controls(recipe: Recipe) -> list[str]:
    return list(dict.fromkeys((CONTROL, control_of(recipe)))) if recipe.switches else []
