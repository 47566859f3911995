"""Means over seeds and how far they can be trusted."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean and the half-width of its 95 % confidence interval.

    Attributes
    ----------
    mean : float
        NaN of no values.
    half_width : float
        NaN of fewer than two values, of values that are all equal, and of values not finite.
    all_equal : bool, default False
        Whether there are several values, all equal.
    """

    mean: float
    half_width: float
    all_equal: bool = False

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of zero; never without an interval."""
        return abs(self.mean) > self.half_width


def interval(values: Sequence[float]) -> Interval:
    """Student's t-interval: t(0.975, n−1) · s / √n about the mean.

    Equal values have no interval: accuracy comes in steps of one test sample, and that three seeds
    land on the same step says nothing about how far the next will fall from it.

    Parameters
    ----------
    values : sequence of float
        One per seed.

    Examples
    --------
    >>> interval([1.0, 2.0, 3.0])
    Interval(mean=2.0, half_width=2.48413...)
    """
    from scipy.stats import t

    n = len(values)
    if n == 0:
        return Interval(math.nan, math.nan)
    if n == 1 or not all(map(math.isfinite, values)):
        return Interval(sum(values) / n, math.nan)
    if math.isclose(min(values), max(values)):
        return Interval(fmean(values), math.nan, all_equal=True)
    quantile = float(t.ppf((1 + CONFIDENCE) / 2, df=n - 1))
    return Interval(fmean(values), quantile * stdev(values) / math.sqrt(n))


def paired(values: Mapping[int, float], baseline: Mapping[int, float]) -> Interval:
    """Compare by the differences ``values − baseline`` over the seeds that both have.

    Equal seeds mean equal initial weights and data order, so most of the scatter between seeds
    drops out of the difference.

    Parameters
    ----------
    values, baseline : mapping of int to float
        From seed to value.
    """
    return interval([values[seed] - baseline[seed] for seed in sorted(values.keys() & baseline)])
