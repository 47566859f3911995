"""The range of an axis that one contender far behind does not squeeze."""

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import NamedTuple

import numpy as np

from steppe._shared.statistics import Interval

# A contender is within reach if it lies no further from the median than so many times the spread
# of all, or than half the usual interval.
_REACH = 6.0
# Leaving out contenders must make an axis so many times shorter.
_WORTH_IT = 2.0
_MARGIN = 0.06


class NearRange(NamedTuple):
    """Ends of an axis that fit the contenders within reach, and the names of those beyond."""

    low: float
    high: float
    beyond: tuple[str, ...]


def near_range(found: Mapping[str, Interval], higher_is_better: bool) -> NearRange | None:
    """Fit an axis to the contenders within reach; None where all are, or nobody is.

    Within reach is what lies at most six times the spread behind the median: the median distance
    from it, or half a usual interval where that is larger. Nobody is too far ahead to be shown.

    Examples
    --------
    >>> found = {name: Interval(x, x - 0.2, x + 0.2) for name, x in
    ...          (("a", 87.0), ("b", 87.2), ("c", 87.1), ("d", 81.0))}
    >>> near_range(found, higher_is_better=True)
    NearRange(low=86.764, high=87.436, beyond=('d',))
    """
    known = {name: each for name, each in found.items() if each.mean == each.mean}
    if len(known) < 3:
        return None
    middle = median(each.mean for each in known.values())
    halves = [each.high - each.mean for each in known.values() if math.isfinite(each.high)]
    spread = max(
        median(abs(each.mean - middle) for each in known.values()), median(halves) if halves else 0
    )
    sign = 1 if higher_is_better else -1
    near = {
        name: each for name, each in known.items() if sign * (middle - each.mean) <= _REACH * spread
    }
    low, high = _ends(near)
    least, most = _ends(known)
    if len(near) == len(known) or most - least < _WORTH_IT * (high - low):
        return None
    return _with_margin(low, high, tuple(name for name in known if name not in near))


def fitted_range(found: Mapping[str, Interval], higher_is_better: bool) -> NearRange | None:
    """Fit an axis to the contenders within reach, or to all if all are; None without any.

    For lines whose beginning lies far away.
    """
    if near := near_range(found, higher_is_better):
        return near
    known = {name: each for name, each in found.items() if each.mean == each.mean}
    return _with_margin(*_ends(known), ()) if known else None


def better_half(values: Sequence[float], higher_is_better: bool) -> NearRange:
    """Fit an axis to the better half of values: those of bad settings are far from them.

    Examples
    --------
    >>> better_half([10.0, 80.0, 90.0], higher_is_better=True)
    NearRange(low=79.0, high=93.0, beyond=())
    """
    low, middle, high = np.quantile(values, (0.0, 0.5, 1.0)).tolist()
    margin = 0.1 * ((high - middle) if higher_is_better else (middle - low)) or 1.0
    if higher_is_better:
        return NearRange(middle - margin, high + 3 * margin, ())
    return NearRange(low - 3 * margin, middle + margin, ())


def with_zero(near: NearRange | None) -> NearRange | None:
    """Let an axis of differences reach over 0."""
    if near is None:
        return None
    return near._replace(low=min(near.low, 0.0), high=max(near.high, 0.0))


def _with_margin(low: float, high: float, beyond: tuple[str, ...]) -> NearRange:
    margin = _MARGIN * (high - low) or abs(high) or 1.0
    return NearRange(round(low - margin, 12), round(high + margin, 12), beyond)


def _ends(found: Mapping[str, Interval]) -> tuple[float, float]:
    """Return the lowest and the highest end of intervals, or values where there are none.

    An end that is infinite, as where samples' losses are, is none: no axis reaches it.
    """
    lows = [each.low if math.isfinite(each.low) else each.mean for each in found.values()]
    highs = [each.high if math.isfinite(each.high) else each.mean for each in found.values()]
    return min(lows), max(highs)
