"""What is searched for each optimizer, and at which points."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from steppe._shared.hyperparameters import PUBLISHED_RHO, PUBLISHED_SWITCH, Settings
from steppe._shared.recipes import Recipe

_DECADE = 10.0
_DESIGN_SEED = 0
_MOST_KNOBS = 8


@dataclass(frozen=True)
class Range:
    """A hyperparameter between two bounds, evenly or by its logarithm.

    Examples
    --------
    >>> Range(0.01, 1.0, log=True).at(0.5)
    0.1
    """

    low: float
    high: float
    log: bool = False

    def at(self, share: float) -> float:
        """Return the value at a share in [0, 1) of the way, to four digits."""
        if self.log:
            return float(f"{self.low * (self.high / self.low) ** share:.4g}")
        return float(f"{self.low + (self.high - self.low) * share:.4g}")


@dataclass(frozen=True)
class Choice:
    """A hyperparameter that is one of a few values.

    Examples
    --------
    >>> Choice((5, 10, 20)).at(0.4)
    10
    """

    choices: tuple[float, ...]

    def at(self, share: float) -> float:
        """Return the value in whose part of [0, 1) the share lies."""
        return self.choices[int(share * len(self.choices))]


Space = Mapping[str, Range | Choice]

_SPACE: Space = {
    "weight_decay": Range(1e-5, 1e-1, log=True),
    "switch": Range(0.05, 0.5, log=True),
    "priority_decay": Range(0.7, 0.99),
    "rho": Range(0.01, 0.2, log=True),
}


def find_space(recipe: Recipe, fixed: Settings | None = None) -> dict[str, Range | Choice]:
    """Declare what is searched for an optimizer: lr, weight decay, and the knob that is its own.

    lr spans a decade to both sides of the class's default, weight decay 1e-5 to 1e-1. Own knobs:
    the switch of DualAdam and the end of a warm-up, as a share of the run (0.05 to 0.5); the decay
    λ of critical buffers' keys (0.7 to 0.99); SAM's radius ρ (0.01 to 0.2).

    Parameters
    ----------
    recipe : Recipe
        The optimizer.
    fixed : mapping, optional
        Values that are given, hence not searched.

    Raises
    ------
    ValueError
        If lr is not fixed, and the class takes one and has no default for it.

    Examples
    --------
    >>> from steppe._shared.recipes import find_recipe
    >>> find_space(find_recipe("adamw"))["lr"]
    Range(low=0.0001, high=0.01, log=True)
    """
    fixed = fixed or {}
    searched = [name for name in ("lr", *_SPACE) if recipe.takes(name) and name not in fixed]
    return {name: _about_default(recipe) if name == "lr" else _SPACE[name] for name in searched}


def find_defaults(recipe: Recipe, space: Space) -> dict[str, float]:
    """Give the values of what is searched that a user gets who sets nothing.

    They are the class's own; the switch comes after the published share of the run, and ρ is 0.05.
    """
    other = {"switch": PUBLISHED_SWITCH, "rho": PUBLISHED_RHO}
    return {name: other[name] if name in other else recipe.default(name) for name in space}


def search_points(space: Space, defaults: Settings, budget: int) -> list[dict[str, float]]:
    """Choose the points to try: the defaults, then Sobol's, scrambled once and for all.

    The points of the unit cube are the same for every optimizer, as far as it has dimensions, and
    those of a smaller budget are the first of a larger one. So nobody is luckier than the others,
    and the trials do not depend on who finishes first.

    Parameters
    ----------
    space : mapping
        What is searched; with nothing in it there is one point.
    defaults : mapping
        Values of everything, those included that are not searched.
    budget : int
        How many points.
    """
    from scipy.stats import qmc

    if budget < 1:
        return []
    if not space:
        return [dict(defaults)]
    cube = qmc.Sobol(_MOST_KNOBS, rng=_DESIGN_SEED).random_base2(max(0, (budget - 2).bit_length()))
    points = [
        {name: space[name].at(share) for name, share in zip(space, row, strict=False)}
        for row in cube[: budget - 1]
    ]
    return [{**defaults, **point} for point in ({}, *points)]


def space_as_json(space: Space) -> dict[str, dict[str, Any]]:
    """Give a space as plain values, which JSON leaves as they are: lists for tuples."""
    plain: dict[str, dict[str, Any]] = json.loads(
        json.dumps({name: asdict(dimension) for name, dimension in space.items()})
    )
    return plain


def _about_default(recipe: Recipe) -> Range:
    lr = recipe.default("lr")
    if lr is None:
        raise ValueError(f"{recipe.name} has no default lr: give one with --lr")
    return Range(lr / _DECADE, lr * _DECADE, log=True)
