"""Control optimizers that a study adds by itself, such as adam+warmup beside dualadam."""

from collections.abc import Iterable

import steppe
from steppe._shared.hyperparameters import Settings
from steppe._shared.recipes import Recipe, find_recipe


def controls_of(recipe: Recipe) -> tuple[str, ...]:
    """Name what an optimizer is without what is new about it.

    While gradients are small, DualAdam is Adam with a linear warm-up and nothing else; MIAdam's
    early steps are shorter or longer than Adam's. Critical momenta lengthen a step whose gradients
    agree, by up to 1 + κ: is Adam at twice the lr as good?

    Examples
    --------
    >>> controls_of(find_recipe("dualadam+sam")), controls_of(find_recipe("sgdcm"))
    (('adam+warmup+sam',), ('sgd-momentum+2lr',))
    >>> controls_of(find_recipe("dualadamcm"))
    ('adam+warmup', 'adamcm+warmup')
    """
    around = "+sam" if recipe.sam else ""
    if issubclass(recipe.cls, steppe.DualAdamCM):
        return f"adam+warmup{around}", f"adamcm+warmup{around}"
    if recipe.switches:
        return (f"adam+warmup{around}",)
    if recipe.warmup or recipe.doubled:
        return ()
    if issubclass(recipe.cls, steppe.AdamCM):
        return (f"adam+2lr{around}",)
    if issubclass(recipe.cls, steppe.SGDCM):
        return (f"sgd-momentum+2lr{around}",)
    return ()


def recipes_with_controls(names: Iterable[str]) -> tuple[Recipe, ...]:
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
        missing = [find_recipe(name) for name in controls_of(recipe) if name not in known]
        known |= {control.name for control in missing}
        ordered += [*missing, recipe] if ordered else [recipe, *missing]
    return tuple(ordered)


def followed_contender(recipe: Recipe, recipes: Iterable[Recipe]) -> str:
    """Name the contender whose lr is doubled for this one; "" if it has an lr of its own.

    Raises
    ------
    ValueError
        If it is a control of that kind, and what it is to control does not take part.
    """
    if not recipe.doubled:
        return ""
    for other in recipes:
        if recipe.name in controls_of(other):
            return other.name
    raise ValueError(
        f"{recipe.name} is at twice the lr of critical momenta: name such an optimizer"
    )


def followed_settings(recipe: Recipe, settings: Settings) -> dict[str, float]:
    """Take over the settings of what a control follows, lr doubled, the rest as it stands."""
    taken = {name: value for name, value in settings.items() if recipe.takes(name)}
    return {**taken, "lr": 2 * settings["lr"]}


def contenders_controlled_by(recipe: Recipe, recipes: Iterable[Recipe]) -> tuple[str, ...]:
    """Name the contenders that are to be read beside this one."""
    return tuple(other.name for other in recipes if recipe.name in controls_of(other))
