"""How many trials a verdict needs, whatever the difference is."""

from steppe._shared.statistics import LEVEL
from steppe.compare.records.best_of_k import SWAPS


def smallest_p(trials: int) -> float:
    """Return the smallest p that a label swap of so many trials can have.

    Of the 2ᴺ ways to swap, the one that was observed and its mirror image are as large as it.

    Examples
    --------
    >>> smallest_p(3), smallest_p(24)
    (0.25, 0.0001)
    """
    return max(2.0 ** (1 - trials), 1 / (SWAPS + 1))


def fewest_trials(comparisons: int) -> int:
    """Return how many trials a verdict needs, in a family of so many comparisons.

    Examples
    --------
    >>> fewest_trials(1), fewest_trials(7)
    (6, 9)
    """
    return next(count for count in range(1, 64) if smallest_p(count) * comparisons < LEVEL)
