"""What is searched for each optimizer, and which settings and seed each trial has."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

import steppe
from steppe._shared.hyperparameters import PUBLISHED_SWITCH, Settings
from steppe._shared.recipes import Recipe

# lr spans three decades, half of them to each side of the class's default.
_LR_FACTOR = 10**1.5


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

    def __post_init__(self) -> None:
        if not -math.inf < self.low < self.high < math.inf:
            raise ValueError(f"low must be below high, got {self.low} and {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"low must be above 0 where log=True, got {self.low}")

    def at(self, share: float) -> float:
        """Return the value at a share in [0, 1) of the way, to four digits."""
        if self.log:
            return float(f"{self.low * (self.high / self.low) ** share:.4g}")
        return float(f"{self.low + (self.high - self.low) * share:.4g}")


@dataclass(frozen=True)
class Uniform(Range):
    """A hyperparameter between two bounds, evenly.

    Examples
    --------
    >>> Uniform(0.0, 0.5).at(0.5)
    0.25
    """


@dataclass(frozen=True)
class LogUniform(Range):
    """A hyperparameter between two bounds above 0, by its logarithm.

    Examples
    --------
    >>> LogUniform(1e-4, 1e-2).at(0.5)
    0.001
    """

    log: bool = True


@dataclass(frozen=True)
class Choice:
    """A hyperparameter that is one of a few values.

    Examples
    --------
    >>> Choice((5, 10, 20)).at(0.4)
    10
    """

    choices: tuple[float, ...]

    def __post_init__(self) -> None:
        are_numbers = all(type(each) in (int, float) for each in self.choices)
        if not self.choices or not are_numbers or not all(map(math.isfinite, self.choices)):
            raise ValueError(f"choices must be finite numbers, got {self.choices!r}")

    def at(self, share: float) -> float:
        """Return the value in whose part of [0, 1) the share lies."""
        return self.choices[int(share * len(self.choices))]


Space = Mapping[str, Range | Choice]

# Wide, so that no winner lies at an end: under label noise AdamW's best weight decay is 1.
_SPACE: Space = {
    "weight_decay": Range(1e-5, 3.0, log=True),
    "beta1": Range(0.8, 0.98),
    "switch": Range(0.05, 0.5, log=True),
    "priority_decay": Range(0.7, 0.99),
}

# SAM's best radius on small networks is above the published 0.05. The others' ranges are where an
# MLP on digits trains, about that of its best loss.
_RHO = {
    "sam": Range(0.01, 0.5, log=True),
    "asam": Range(0.1, 5.0, log=True),
    "psam": Range(5e-4, 0.05, log=True),
    "msam": Range(0.02, 2.0, log=True),
    "random": Range(0.02, 0.5, log=True),
    "latesam": Range(0.01, 0.5, log=True),
}

# Classes whose step is lr times a gradient, of the gradient's size: their best lr is far above
# the classes' default.
_OF_SGD = (torch.optim.SGD, steppe.SGDCM, steppe.SGDCG)
_LR_OF_SGD = Range(1e-3, 1.0, log=True)


def find_space(recipe: Recipe, fixed: Settings | None = None) -> dict[str, Range | Choice]:
    """Declare what is searched for an optimizer: lr, weight decay, and the knob that is its own.

    lr spans three decades around the class's default (SGD's, and that of SGD with critical
    momenta, 1e-3 to 1), weight decay 1e-5 to 3. Own knobs: the switch of DualAdam and the end of a
    warm-up, as a share of the run (0.05 to 0.5); the decay λ of critical buffers' keys (0.7 to
    0.99); SAM's radius ρ (0.01 to 0.5; ``+asam`` 0.1 to 5, ``+psam`` 0.0005 to 0.05, ``+msam`` 0.02
    to 2, ``+random`` 0.02 to 0.5); of ``+beta1`` the decay of the first moment (0.8 to 0.98).

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
    >>> find_space(find_recipe("sgd-momentum"))["lr"]
    Range(low=0.001, high=1.0, log=True)
    """
    fixed = fixed or {}
    if recipe.space is not None:
        return {name: each for name, each in recipe.space.items() if name not in fixed}
    known = {"lr": None, **_SPACE, "rho": None}
    searched = [name for name in known if recipe.takes(name) and name not in fixed]
    return {name: known[name] or _own_range(recipe, name) for name in searched}


def _own_range(recipe: Recipe, name: str) -> Range:
    return _lr_range(recipe) if name == "lr" else _RHO[recipe.sam]


def with_lr_decades(space: Space, decades: float) -> dict[str, Range | Choice]:
    """Search lr in so many decades, about the middle of the range that it has.

    Examples
    --------
    >>> with_lr_decades({"lr": Range(1e-4, 1e-2, log=True)}, 1.0)["lr"]
    Range(low=0.0003162, high=0.003162, log=True)
    """
    lr = space.get("lr")
    if not isinstance(lr, Range):
        return dict(space)
    return {**space, "lr": _around(math.sqrt(lr.low * lr.high), 10 ** (decades / 2))}


def find_defaults(recipe: Recipe, space: Space) -> dict[str, float]:
    """Give the values of what is searched that a user gets who sets nothing.

    They are the class's own; the switch comes after the published share of the run.
    """
    other = {"switch": PUBLISHED_SWITCH}
    return {name: other[name] if name in other else recipe.default(name) for name in space}


def trial_settings(
    space: Space, defaults: Settings, study_seed: int, number: int
) -> dict[str, float]:
    """Draw the settings of one trial of the pool at random.

    A hyperparameter's place in its range depends on its name, on the trial's number and on the
    study's seed alone: trials of the same number have the same point of the unit cube, whatever the
    optimizer, and those of a smaller pool are the first of a larger one.

    Parameters
    ----------
    space : mapping
        What is searched.
    defaults : mapping
        Values of everything else; those of what is searched are not used.
    study_seed : int
        The study's.
    number : int
        The trial's, from 0.

    Examples
    --------
    >>> trial_settings({"lr": Range(1e-4, 1e-2, log=True)}, {"weight_decay": 0.0}, 0, 0)
    {'weight_decay': 0.0, 'lr': ...}
    """
    drawn = {
        name: space[name].at(_draw("setting", study_seed, number, name) / 2**53) for name in space
    }
    return {**defaults, **drawn}


def trial_seed(study_seed: int, phase: str, number: int) -> int:
    """Return the seed of weights and data order of a trial, the same for every optimizer.

    Examples
    --------
    >>> trial_seed(0, "pool", 0) != trial_seed(1, "pool", 0)
    True
    """
    # Below 2³²: torch takes more, NumPy's older generators do not.
    return _draw("seed", study_seed, phase, number) % 2**32


def space_as_json(space: Space) -> dict[str, dict[str, Any]]:
    """Give a space as plain values, which JSON leaves as they are: lists for tuples."""
    plain: dict[str, dict[str, Any]] = json.loads(
        json.dumps({name: asdict(dimension) for name, dimension in space.items()})
    )
    return plain


def _draw(*what: object) -> int:
    """Return 53 random bits that depend on nothing but the arguments."""
    digest = hashlib.sha256("/".join(map(str, what)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 11


def _lr_range(recipe: Recipe) -> Range:
    if issubclass(recipe.cls, _OF_SGD):
        return _LR_OF_SGD
    lr = recipe.default("lr")
    if lr is None:
        raise ValueError(f"{recipe.name} has no default lr: give one with --lr")
    return _around(lr, _LR_FACTOR)


def _around(middle: float, factor: float) -> Range:
    low, high = (float(f"{each:.4g}") for each in (middle / factor, middle * factor))
    return Range(low, high, log=True)
