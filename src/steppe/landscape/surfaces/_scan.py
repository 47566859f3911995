"""The loss at one place after another."""

import math
from collections.abc import Callable

import numpy as np

from steppe._shared.array_types import Floats
from steppe._shared.progress import progress
from steppe.landscape._objective import Objective


def scan(
    objective: Objective, what: str, count: int, go_to: Callable[[int], None]
) -> tuple[Floats, bool]:
    """Take the loss at places 0 to count − 1; return the losses, and whether these are all.

    Where the loss overflows it is infinite. NaN stands for what was not computed, after Ctrl-C; if
    nothing was, KeyboardInterrupt goes on.

    Parameters
    ----------
    objective
        At work, with what ``go_to`` moves protected.
    what
        What the bar says.
    count
        Number of places.
    go_to
        Puts the parameters at a place, given its number.
    """
    losses = np.full(count, np.nan)
    with progress(what, count) as advance:
        try:
            for place in range(count):
                go_to(place)
                loss, _ = objective.loss(finite=False)
                # An overflow shows as NaN too, where infinities have been subtracted.
                losses[place] = math.inf if math.isnan(loss) else loss
                advance(1)
        except KeyboardInterrupt:
            if np.isnan(losses).all():
                raise
            return losses, False
    return losses, True


def check_points(points: int) -> None:
    """Refuse a number of points.

    Raises
    ------
    ValueError
        It is not a whole number from 3.
    """
    if not isinstance(points, int) or points < 3:
        raise ValueError(f"points={points!r} must be a whole number from 3")
