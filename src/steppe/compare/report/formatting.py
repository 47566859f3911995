"""How numbers are written, the same in the terminal, in pictures and on the page."""

import math
from collections.abc import Callable, Iterable, Sequence
from statistics import median

from steppe._shared.hyperparameters import Settings
from steppe._shared.statistics import Interval
from steppe.compare.records.results import MetricDescription

#: Stands where there is no number.
MISSING = "–"


def format_number(value: float, digits: int, *, sign: bool = False) -> str:
    """Write a number with so many decimals and a true minus; ``–`` where there is none.

    Examples
    --------
    >>> format_number(-0.456, 2), format_number(0.5, 1, sign=True), format_number(float("nan"), 2)
    ('−0.46', '+0.5', '–')
    """
    if not math.isfinite(value):
        return MISSING
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def format_interval(value: Interval, digits: int, *, sign: bool = False) -> str:
    """Write a mean with its interval, if it has one; ``–`` where there is no mean.

    Parameters
    ----------
    value : Interval
        What to write.
    digits : int
        Decimals of all three numbers.
    sign : bool, default False
        Whether a plus is written too, as of differences. A small one has up to two decimals more,
        so that the largest of its numbers has two digits.

    Examples
    --------
    >>> format_interval(Interval(97.5, 97.044, 97.9), 2)
    '97.50 [97.04, 97.90]'
    >>> format_interval(Interval(-0.5, float("nan"), float("nan")), 1, sign=True)
    '−0.50'
    >>> format_interval(Interval(0.0123, 0.0064, 0.0182), 1, sign=True)
    '+0.012 [+0.006, +0.018]'
    """
    sizes = [abs(each) for each in (value.mean, value.low, value.high) if math.isfinite(each)]
    if sign and any(sizes):
        digits = max(digits, min(digits + 2, decimals([max(sizes)], 2)))
    return _format_mean_and_bounds(value, lambda each: format_number(each, digits, sign=sign))


def format_significant(value: Interval) -> str:
    """Write a mean to three digits, and its interval as far; ``–`` where there is none.

    Examples
    --------
    >>> format_significant(Interval(0.012345, 0.0111, 0.0133))
    '0.0123 [0.0111, 0.0133]'
    >>> format_significant(Interval(1234.5, 1167, 1302))
    '1234 [1167, 1302]'
    >>> format_significant(Interval(1.234e-6, 1.1e-6, 1.3e-6))
    '1.2e−06 [1.1e−06, 1.3e−06]'
    """
    if 1e-3 <= abs(value.mean) < 1e5 or not value.mean:
        return format_interval(value, decimals([value.mean], 3))
    return _format_mean_and_bounds(value, lambda each: f"{each:.1e}")


def decimals(values: Iterable[float], digits: int) -> int:
    """Count the decimals that show the median of finite values to so many digits.

    Examples
    --------
    >>> decimals([97.5, 91.2, 10.0], 4), decimals([0.0345], 3), decimals([], 3)
    (2, 4, 2)
    """
    sizes = [abs(value) for value in values if math.isfinite(value) and value]
    size = math.floor(math.log10(median(sizes))) if sizes else 0
    return max(0, digits - 1 - size)


def format_short(value: float) -> str:
    """Write two digits of a mean; ``–`` where there is none.

    Examples
    --------
    >>> format_short(0.00457), format_short(-0.5), format_short(float("nan"))
    ('0.0046', '−0.5', '–')
    """
    return f"{value:.2g}".replace("-", "−") if math.isfinite(value) else MISSING


def format_p_value(p: float) -> str:
    """Write a p-value; ``–`` where there is none.

    Examples
    --------
    >>> [format_p_value(p) for p in (0.0321, 0.00002, 1.0, float("nan"))]
    ['0.032', '<0.001', '1.000', '–']
    """
    return "<0.001" if p < 0.001 else format_number(p, 3)


def format_duration(seconds: float) -> str:
    """Write a time in a unit that suits it; ``–`` where there is none.

    Examples
    --------
    >>> [format_duration(seconds) for seconds in (0.234, 59.0, 90.0, 5000.0)]
    ['0.2 s', '59 s', '1.5 min', '1.4 h']
    """
    if not math.isfinite(seconds):
        return MISSING
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def format_count(count: float) -> str:
    """Write a count with its thousands apart; ``–`` where there is none.

    Examples
    --------
    >>> format_count(19200.0), format_count(float("nan"))
    ('19 200', '–')
    """
    return f"{count:,.0f}".replace(",", " ") if math.isfinite(count) else MISSING


def format_share(share: float) -> str:
    """Write a share in per cent; ``–`` where there is none.

    Examples
    --------
    >>> format_share(0.125), format_share(0.0)
    ('12 %', '0 %')
    """
    return f"{100 * share:.0f} %" if math.isfinite(share) else MISSING


def format_settings(settings: Settings) -> str:
    """Write hyperparameters to three digits; ``–`` where there are none.

    Examples
    --------
    >>> format_settings({"lr": 0.00123456, "switch": 0.16})
    'lr 0.00123, switch 0.16'
    """
    return ", ".join(f"{name} {value:.3g}" for name, value in settings.items()) or MISSING


def unit_of_change(metric: MetricDescription) -> str:
    """Write the unit of a difference after what differs: per cents differ by points.

    Examples
    --------
    >>> unit_of_change(MetricDescription()), unit_of_change(MetricDescription(unit=""))
    (', points', '')
    """
    unit = "points" if metric.unit == "%" else metric.unit
    return f", {unit}" if unit else ""


def join_with_and(parts: Sequence[str]) -> str:
    """Write parts as a sentence does.

    Examples
    --------
    >>> join_with_and(["one"]), join_with_and(["one", "two", "three"])
    ('one', 'one, two and three')
    """
    return " and ".join(part for part in (", ".join(parts[:-1]), *parts[-1:]) if part)


def _format_mean_and_bounds(value: Interval, write: Callable[[float], str]) -> str:
    if not math.isfinite(value.mean):
        return MISSING
    mean, low, high = (
        write(each).replace("-", "−") for each in (value.mean, value.low, value.high)
    )
    return mean if math.isnan(value.low) else f"{mean} [{low}, {high}]"
