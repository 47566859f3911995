"""How much longer one thing takes than another."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_RESAMPLES = 2_000


class Ratio(NamedTuple):
    """A ratio and its 95 % interval."""

    value: float
    low: float
    high: float


def ratio_of_medians(numerators: Sequence[float], denominators: Sequence[float]) -> Ratio:
    """Divide the medians of values that came in pairs.

    The interval is a bootstrap's over the pairs, with a fixed seed.

    Examples
    --------
    >>> ratio_of_medians([2.0, 2.0, 2.0], [4.0, 4.0, 4.0])
    Ratio(value=0.5, low=0.5, high=0.5)
    """
    above, below = np.array(numerators), np.array(denominators)
    count = len(above)
    chosen = np.random.default_rng(0).integers(count, size=(_RESAMPLES, count))
    ratios = np.median(above[chosen], axis=1) / np.median(below[chosen], axis=1)
    low, high = np.quantile(ratios, (0.025, 0.975))
    return Ratio(float(np.median(above) / np.median(below)), float(low), float(high))
