"""Means, differences and ratios of measured values, each with its confidence interval.

Studies compare optimizers over seeds with it, benchmarks compare times.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import NamedTuple

#: Significance level of tests; confidence intervals have the level 1 − LEVEL.
LEVEL = 0.05

# Of larger numbers sums of squares overflow.
_LARGEST = 1e150

# Of times, whose intervals are not read exactly, and which every measurement waits for.
_RATIO_RESAMPLES = 2_000


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % confidence interval.

    Attributes
    ----------
    mean : float
        NaN of no values.
    low, high : float
        NaN of fewer than two values, of values that are all equal, and of values not finite.
    all_equal : bool, default False
        Whether there are several values, all equal.
    """

    mean: float
    low: float
    high: float
    all_equal: bool = False


def interval(values: Sequence[float]) -> Interval:
    """Return the mean with Student's 95 % interval: mean ± t(0.975, n − 1) · s/√n.

    Of three or five values a bootstrap interval would hold the mean in 75 and 92 % of cases.

    Equal values have no interval: accuracy comes in steps of one test sample, and that three seeds
    land on the same step says nothing about how far the next will fall from it.

    Parameters
    ----------
    values : sequence of float
        One for each seed; their order does not matter.

    Examples
    --------
    >>> interval([1.0, 2.0, 3.0])
    Interval(mean=2.0, low=-0.48..., high=4.48..., all_equal=False)
    """
    n = len(values)
    if n == 0:
        return Interval(math.nan, math.nan, math.nan)
    middle, error = mean(values), standard_error(values)
    if math.isnan(error):
        return Interval(middle, math.nan, math.nan)
    if math.isclose(min(values), max(values)):
        return Interval(middle, math.nan, math.nan, all_equal=True)
    half = t_quantile(1 - LEVEL / 2, n - 1) * error
    return Interval(middle, middle - half, middle + half)


def standard_error(values: Sequence[float]) -> float:
    """Return the standard error of the mean, s/√n; NaN of one value, or of one without a square.

    Examples
    --------
    >>> standard_error([1.0, 3.0]), standard_error([1.0, math.inf])
    (1.0, nan)
    """
    if len(values) < 2 or not all(map(_has_square, values)):
        return math.nan
    return stdev(values) / math.sqrt(len(values))


def t_quantile(level: float, freedom: float) -> float:
    """Return the quantile of Student's distribution with ``freedom`` degrees of freedom.

    Examples
    --------
    >>> round(t_quantile(0.975, 2), 4), round(t_quantile(0.975, math.inf), 4)
    (4.3027, 1.96)
    """
    # scipy.stats calls the same function, and takes half a second to import.
    from scipy.special import stdtrit

    return float(stdtrit(freedom, level))


def mean(values: Iterable[float]) -> float:
    """Return the mean; infinity where the sum is too large, as a perplexity may be.

    Examples
    --------
    >>> mean([1.0, 2.0]), mean([1e308, 1e308])
    (1.5, inf)
    """
    numbers = list(values)
    try:
        return fmean(numbers)
    except OverflowError:
        return sum(numbers) / len(numbers)


def holm(ps: Sequence[float]) -> list[float]:
    """Correct p-values for their number m, so that one false alarm among all is as rare as in one.

    The i-th smallest becomes max over j ≤ i of (m − j + 1) · p_j, at most 1 (S. Holm, A simple
    sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6, 1979).

    Parameters
    ----------
    ps : sequence of float
        NaN where there was no test: it stays, and does not count.

    Examples
    --------
    >>> holm([0.04, 0.01, 0.03])
    [0.06, 0.03, 0.06]
    """
    tested = sorted((p, index) for index, p in enumerate(ps) if not math.isnan(p))
    result, least = list(ps), 0.0
    for rank, (p, index) in enumerate(tested):
        least = max(least, min(1.0, (len(tested) - rank) * p))
        result[index] = least
    return result


class Ratio(NamedTuple):
    """A ratio and its 95 % confidence interval."""

    value: float
    low: float
    high: float


def ratio_of_medians(numerators: Sequence[float], denominators: Sequence[float]) -> Ratio:
    """Return the median of one set of values over that of another, measured in pairs.

    The interval is a percentile bootstrap over the pairs, with a fixed seed. What slows both
    values of a pair alike so leaves the interval narrow.

    Parameters
    ----------
    numerators, denominators : sequence of float
        Equally many, at least one; the values at one index belong together.

    Examples
    --------
    >>> ratio_of_medians([2.0, 2.0, 2.0], [4.0, 4.0, 4.0])
    Ratio(value=0.5, low=0.5, high=0.5)
    """
    import numpy as np

    above, below = np.array(numerators), np.array(denominators)
    count = len(above)
    chosen = np.random.default_rng(0).integers(count, size=(_RATIO_RESAMPLES, count))
    ratios = np.median(above[chosen], axis=1) / np.median(below[chosen], axis=1)
    low, high = np.quantile(ratios, (LEVEL / 2, 1 - LEVEL / 2))
    return Ratio(float(np.median(above) / np.median(below)), float(low), float(high))


def _has_square(value: float) -> bool:
    """Whether a number and its square are finite: a variance can be taken of such numbers."""
    return abs(value) < _LARGEST
