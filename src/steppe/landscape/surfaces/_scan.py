"""The loss at one point after another, as lines, planes and barriers need it."""

import math
from collections.abc import Callable
from numbers import Integral

import numpy as np

from steppe._shared.array_types import Floats
from steppe._shared.progress import progress
from steppe._shared.validation import check_number


def scan_losses(label: str, count: int, loss_at: Callable[[int], float]) -> tuple[Floats, bool]:
    """Evaluate the mean loss at points 0 to count − 1.

    Parameters
    ----------
    label : str
        Text of the progress bar.
    count : int
        Number of points.
    loss_at : callable
        ``loss_at(index)`` goes to a point, and returns the loss there, finite or not.

    Returns
    -------
    losses : ndarray
        Shape (count,). Infinite where the loss overflows; NaN where Ctrl-C came first.
    complete : bool
        Whether all points were evaluated.

    Raises
    ------
    KeyboardInterrupt
        On Ctrl-C before the first loss.
    """
    losses = np.full(count, np.nan)
    with progress(label, count) as advance:
        try:
            for index in range(count):
                loss = loss_at(index)
                # An overflow shows as NaN too, where infinities have been subtracted.
                losses[index] = math.inf if math.isnan(loss) else loss
                advance(1)
        except KeyboardInterrupt:
            if np.isnan(losses).all():
                raise
            return losses, False
    return losses, True


def symmetric_steps(reach: float, points: int) -> Floats:
    """Return evenly spaced steps from −reach to reach, symmetric to the last bit, shape (points,).

    Raises
    ------
    ValueError
        ``points`` is not an integer of at least 3, or ``reach`` not a finite positive number.
    """
    check_points(points)
    check_number(reach=reach)
    if not (math.isfinite(reach) and reach > 0):
        raise ValueError(f"reach must be a finite number above 0, got {reach}")
    return reach * (np.arange(1 - points, points, 2) / (points - 1))


def check_points(points: int) -> None:
    """Refuse a number of points that is not an integer of at least 3.

    Raises
    ------
    ValueError
        It is not.
    """
    if not isinstance(points, Integral) or points < 3:
        raise ValueError(f"points={points!r} must be an integer of at least 3")
