"""Numbers and findings in words."""

import math

from steppe.compare.statistics import Interval

SAME = "same on every seed"


def with_interval(value: Interval, digits: int, *, sign: bool = False) -> str:
    """Write a mean with its half-width; ``–`` where there is none.

    Examples
    --------
    >>> with_interval(Interval(97.5, 0.456), 2)
    '97.50 ± 0.46'
    >>> with_interval(Interval(-0.5, float("nan")), 1, sign=True)
    '−0.5 ± –'
    """
    if value.mean != value.mean:
        return "–"
    mean = f"{value.mean:{'+' if sign else ''}.{digits}f}".replace("-", "−")
    width = "–" if value.half_width != value.half_width else f"{value.half_width:.{digits}f}"
    return f"{mean} ± {width}"


def significant(value: Interval) -> str:
    """Write a mean to three digits, and its half-width as far; ``–`` where there is none.

    Examples
    --------
    >>> significant(Interval(0.012345, 0.00321)), significant(Interval(1234.5, 67.0))
    ('0.0123 ± 0.0032', '1234 ± 67')
    """
    if not math.isfinite(value.mean):
        return "–"
    size = math.floor(math.log10(abs(value.mean))) if value.mean else 0
    return with_interval(value, max(0, 2 - size))


def short(value: float) -> str:
    """Write two digits of a mean; ``–`` where there is none.

    Examples
    --------
    >>> short(0.00457), short(float("nan"))
    ('0.0046', '–')
    """
    return "–" if value != value else f"{value:.2g}"


def verdict(found: Interval) -> str:
    """Say in words whether a difference was seen.

    Examples
    --------
    >>> verdict(Interval(0.4, 0.5)), verdict(Interval(-0.4, 0.1))
    ('no difference seen', 'lower')
    """
    if found.all_equal and found.mean != 0:
        return SAME
    if found.half_width != found.half_width and not found.all_equal:
        return "no interval"
    if not found.excludes_zero:
        return "no difference seen"
    return "higher" if found.mean > 0 else "lower"
