"""Control optimizers that a study adds by itself, such as adam+warmup beside dualadam."""

from collections.abc import Iterable, Sequence

import steppe
from steppe._shared.recipes import Recipe, find_recipe

_TWO_PASSES = ("sam", "asam", "psam")


def controls_of(recipe: Recipe, baseline: Recipe) -> tuple[str, ...]:
    """Name what an optimizer is to be compared with, besides the baseline.

    * While gradients are small, DualAdam is Adam with a linear warm-up and nothing else, and
      MIAdam's early steps are shorter or longer than Adam's: ``adam+warmup``. DualAdamCM has
      ``adamcm+warmup`` besides.
    * Critical momenta remember gradients for longer than the first moment does. Would a first
      moment with another decay be as good? ``adamw+beta1``, or for SGDCM ``sgd-momentum+beta1``.
    * SAM takes two gradients a step, adaptive and preconditioned SAM too: ``+2epochs`` of the
      baseline has as many. Along the momentum and at random SAM takes one, and late in the run
      little more.

    Parameters
    ----------
    recipe : Recipe
        The optimizer. Controls of its method have its other modifiers.
    baseline : Recipe
        What the study compares all optimizers with.

    Examples
    --------
    >>> adamw = find_recipe("adamw")
    >>> controls_of(find_recipe("dualadamcm"), adamw), controls_of(find_recipe("sgdcm+ema"), adamw)
    (('adam+warmup', 'adamcm+warmup'), ('sgd-momentum+beta1+ema',))
    >>> controls_of(find_recipe("dualadam+sam"), adamw)
    ('adam+warmup+sam', 'adamw+2epochs')
    """
    modifiers = "".join(f"+{each}" for each in recipe.name.split("+")[1:] if each != "warmup")
    controls = [find_recipe(name + modifiers).name for name in _without_the_method(recipe)]
    # Of a run that is twice as long already, no name stands for four times the length.
    if recipe.sam in _TWO_PASSES and recipe.epochs == 1:
        alone = baseline.name.removesuffix(f"+{baseline.sam}")
        controls.append(find_recipe(f"{alone}+2epochs").name)
    return tuple(controls)


def _without_the_method(recipe: Recipe) -> tuple[str, ...]:
    """Name the optimizers that have all of one but its method."""
    if issubclass(recipe.cls, steppe.DualAdamCM):
        return "adam+warmup", "adamcm+warmup"
    if recipe.switches:
        return ("adam+warmup",)
    # With a warm-up it is a control itself.
    if recipe.warmup:
        return ()
    if issubclass(recipe.cls, steppe.AdamCM):
        return ("adamw+beta1",)
    if issubclass(recipe.cls, steppe.SGDCM):
        return ("sgd-momentum+beta1",)
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
    baseline = next(iter(asked.values()))
    known = set(asked)
    ordered: list[Recipe] = []
    for recipe in asked.values():
        missing = [name for name in controls_of(recipe, baseline) if name not in known]
        known |= set(missing)
        controls = map(find_recipe, missing)
        ordered += [*controls, recipe] if ordered else [recipe, *controls]
    return tuple(ordered)


def contenders_controlled_by(recipe: Recipe, recipes: Sequence[Recipe]) -> tuple[str, ...]:
    """Name the contenders that are to be read beside this one; the first is the baseline."""
    return tuple(each.name for each in recipes if recipe.name in controls_of(each, recipes[0]))
