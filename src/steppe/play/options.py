"""The names and numbers that ``steppe play`` takes, apart from what they mean.

Its help shows them, and what is misspelt or out of range is refused, without importing torch,
which takes two seconds. Tests hold that the lists are those of
:data:`steppe.functions.FUNCTIONS` and :data:`steppe.play.descent.SCHEDULES`.
"""

import math
from collections.abc import Iterable

#: The test functions.
FUNCTION_NAMES = (
    "ackley",
    "beale",
    "goldstein-price",
    "levy",
    "quadratic",
    "rosenbrock",
    "sharp-flat",
    "six-hump-camel",
)

#: Courses of lr over a run.
SCHEDULE_NAMES = ("constant", "cosine")

#: Formats of the animation; "none" writes no animation.
ANIMATION_FORMATS = ("gif", "mp4", "none")


def check_numbers(
    rates: Iterable[float], *, steps: int, switch: float, rho: float, noise: float, seed: int
) -> None:
    """Refuse numbers of a sweep that are out of range.

    Parameters
    ----------
    rates, steps, switch, rho, noise, seed
        See :class:`steppe.play.Sweep`.

    Raises
    ------
    ValueError
        With the argument's name, what it must be, and what it is.

    Examples
    --------
    >>> check_numbers([0.1], steps=0, switch=0.16, rho=0.05, noise=0.0, seed=0)
    Traceback (most recent call last):
        ...
    ValueError: steps must be at least 1, got 0
    """
    for lr in rates:
        if not 0 < lr < math.inf:
            raise ValueError(f"lr must be a finite number > 0, got {lr}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if not 0 < switch <= 1:
        raise ValueError(f"switch must be in (0, 1], got {switch}")
    for name, value in (("rho", rho), ("noise", noise)):
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be a finite number ≥ 0, got {value}")
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
