"""The verdict on a difference between two optimizers: better, worse, or why neither.

The leaderboard, the terminal's tables, the pictures, the page and the footnotes all take it from
here, so that they cannot contradict each other.
"""

import math

from steppe._shared.statistics import LEVEL, Comparison

BETTER, WORSE = "better", "worse"
NO_DIFFERENCE = "no difference seen"
SAME_ON_EVERY_SEED = "same on every seed"
TOO_FEW_SEEDS = "too few seeds"


def verdict(comparison: Comparison, higher_is_better: bool) -> str:
    """Return what a comparison has shown.

    "better" and "worse" only if p, corrected after Holm, is below 0.05. A difference that is the
    same on every seed has no scatter to test it against; differences that are all zero are no
    difference.

    Parameters
    ----------
    comparison : Comparison
        A contender minus what it is compared with.
    higher_is_better : bool
        Of what was compared: True of an accuracy, False of a loss.

    Examples
    --------
    >>> from steppe._shared.statistics import Interval
    >>> verdict(Comparison(Interval(0.4, 0.3, 0.5), p=0.01, effect=2.0, seeds=5), True)
    'better'
    >>> verdict(Comparison(Interval(0.4, -0.1, 0.9), p=0.2, effect=0.5, seeds=5), True)
    'no difference seen'
    """
    difference = comparison.difference
    if difference.all_equal:
        return SAME_ON_EVERY_SEED if difference.mean else NO_DIFFERENCE
    if math.isnan(comparison.p):
        return TOO_FEW_SEEDS
    if comparison.p >= LEVEL:
        return NO_DIFFERENCE
    return BETTER if (difference.mean > 0) == higher_is_better else WORSE
