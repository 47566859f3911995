"""What tuning with k trials is worth: the expected test result of the best of k, with its error.

An optimizer's result is what a user gets who tries k random settings and takes the best by
validation. A *pool* of N independent trials estimates it without bias for every k ≤ N (Dodge et
al., Show Your Work, EMNLP 2019, in the form without replacement: Tang et al., ACL 2020, show the
bias of the other). Trials of two pools with the same number have the same point of the unit cube
and the same seed, so that differences are paired.

:mod:`~steppe.compare.records.verdicts` applies it to studies, ``benchmarks/calibration.py``
checks how often its verdicts are wrong.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from steppe._shared.statistics import LEVEL, Interval, t_quantile

Array = NDArray[np.float64]

#: How often labels are swapped: the smallest p is one ten-thousandth.
SWAPS = 9_999
#: Comparisons need this many trials for each trial of the budget. With fewer, the best few trials
#: decide everything, and the jackknife's error is too small.
TRIALS_PER_BUDGET = 3
#: All trials are planned before the first one runs, in a sixtieth of a second each.
MOST_TRIALS = 10_000
#: The share of studies that are to find a difference of the size that is called detectable.
POWER = 0.8


@dataclass(frozen=True, eq=False)
class Pool:
    """The trials of one contender, by their number.

    Attributes
    ----------
    score : array of shape (trials,)
        Validation scores, of which more is better: −∞ of a trial that diverged.
    loss : array of shape (trials,)
        Validation losses, which decide between equal scores: ∞ of a trial that diverged. Of what
        is equal in both, the earlier trial is taken, as trials are in random order.
    test : array of shape (trials,)
        What is estimated, in any unit.
    test_samples : array of shape (trials, test samples), optional
        What each test sample adds to ``test``: the mean of a row is its ``test``, up to a constant.
    validation : Validation, optional
        Scores and losses with some of the validation samples left out.
    """

    score: Array
    loss: Array
    test: Array
    test_samples: Array | None = None
    validation: "Validation | None" = None

    def __len__(self) -> int:
        return len(self.test)

    def take(self, trials: NDArray[np.intp]) -> "Pool":
        """Return the pool of these trials, in this order."""
        samples, validation = self.test_samples, self.validation
        return Pool(
            self.score[trials],
            self.loss[trials],
            self.test[trials],
            None if samples is None else samples[trials],
            validation and Validation(*(each[:, trials] for each in validation)),
        )


class Validation(NamedTuple):
    """Scores and losses without one group of validation samples: both of shape (groups, trials)."""

    score: Array
    loss: Array


class Shares(NamedTuple):
    """Where an estimate's error comes from: standard errors, whose squares add up.

    ``trials`` is that of random settings and seeds, ``test`` that of the test samples, and
    ``validation`` that of the validation samples, which choose.
    """

    trials: float
    test: float
    validation: float

    @property
    def total(self) -> float:
        """The standard error of all three together."""
        return math.hypot(*self)


@dataclass(frozen=True)
class Difference:
    """The best of k of one optimizer minus that of another.

    Attributes
    ----------
    estimate : float
        The expected difference of the test results.
    low, high : float
        95 % interval, by all three errors.
    p : float
        The p value of "no difference": the share of label swaps whose difference, divided by its
        error, is at least as large as the observed one.
    shares : Shares
        The errors.
    freedom : float
        Degrees of freedom of the interval.
    """

    estimate: float
    low: float
    high: float
    p: float
    shares: Shares
    freedom: float

    def detectable(self, comparisons: int = 1) -> float:
        """Return the smallest difference that 80 % of such studies would find.

        (t(1 − α/2m) + t(0.8)) · error, in the unit of the estimate, with α = 0.05: after Holm's
        correction for m comparisons the first one to be found has to pass α/m. The error is that of
        the trials alone, ``shares.trials``, as in p.

        Parameters
        ----------
        comparisons : int, default 1
            m, the size of the family.
        """
        levels = (1 - LEVEL / (2 * comparisons), POWER)
        return sum(t_quantile(each, self.freedom) for each in levels) * self.shares.trials


def weights(trials: int, k: int) -> Array:
    """Return the probability that the trial of each rank is the best of k, the best trial first.

    w_r = C(N − 1 − r, k − 1) / C(N, k) for r = 0 … N − 1.

    Parameters
    ----------
    trials : int
        N.
    k : int
        How many of them a user tries, from 1 to N.

    Raises
    ------
    ValueError
        If k is out of range.

    Examples
    --------
    >>> [round(float(each), 4) for each in weights(4, 2)]
    [0.5, 0.3333, 0.1667, 0.0]
    """
    if not 1 <= k <= trials:
        raise ValueError(f"k must be from 1 to the {trials} trials, got {k}")
    found = np.empty(trials)
    found[0] = k / trials
    for rank in range(trials - 1):
        found[rank + 1] = found[rank] * (trials - k - rank) / (trials - 1 - rank)
    return np.maximum(found, 0.0)


def degrees_of_freedom(trials: int, k: int) -> float:
    """Return 1/Σw² − 1, about how many trials an estimate rests on.

    Examples
    --------
    >>> round(degrees_of_freedom(24, 4), 1), round(degrees_of_freedom(48, 1))
    (8.8, 47)
    """
    return float(1 / np.square(weights(trials, k)).sum() - 1)


def expected_best(pool: Pool, k: int) -> float:
    """Return the expected test result of the best of k trials.

    Examples
    --------
    >>> pool = Pool(np.array([0.9, 0.8]), np.zeros(2), np.array([10.0, 20.0]))
    >>> expected_best(pool, 1), expected_best(pool, 2)
    (15.0, 10.0)
    """
    return float(weights(len(pool), k) @ pool.test[_order(pool.score, pool.loss)])


def interval_of_best(pool: Pool, k: int, *, samples: bool = True) -> Interval:
    """Return the expected test result of the best of k with its 95 % interval.

    Without an interval if there are fewer than 3k trials.

    Parameters
    ----------
    pool : Pool
        The trials.
    k : int
        The tuning budget.
    samples : bool, default True
        Whether the interval has the shares of test and validation samples too. All optimizers of a
        study have the same samples: beside each other they are compared without.
    """
    value = expected_best(pool, k)
    if len(pool) < max(TRIALS_PER_BUDGET * k, 3):
        return Interval(value, math.nan, math.nan)
    error = float(_jackknife_error(_without_each(pool.test[_order(pool.score, pool.loss)], k)))
    if samples:
        error = math.hypot(
            error, _test_error([(pool, 1.0)], k), _validation_error([(pool, 1.0)], k)
        )
    half = t_quantile(1 - LEVEL / 2, degrees_of_freedom(len(pool), k)) * error
    return Interval(value, value - half, value + half)


def compare_pools(ours: Pool, theirs: Pool, k: int, *, swaps: int = SWAPS) -> Difference:
    """Compare the best of k of two optimizers, trial by trial.

    The error over trials is the jackknife's: each trial is left out of both pools at once. p is
    that of a label swap: if the optimizers are worth the same, trial i of one may be exchanged
    with trial i of the other for every i, with probability one half, without changing the
    distribution of estimate ÷ error. Without the division, 19 % of pairs of equal optimizers whose
    results scatter differently were called different.

    Parameters
    ----------
    ours, theirs : Pool
        Equally many trials; those at one index belong together.
    k : int
        The tuning budget.
    swaps : int, default 9 999
        How often labels are swapped, always in the same way.

    Raises
    ------
    ValueError
        If the pools have different sizes, or fewer than 3k trials.
    """
    trials = len(ours)
    if trials != len(theirs):
        raise ValueError(f"pools must be equally large, got {trials} and {len(theirs)} trials")
    if trials < TRIALS_PER_BUDGET * k:
        raise ValueError(
            f"trials must be at least {TRIALS_PER_BUDGET} times the budget, "
            f"{TRIALS_PER_BUDGET * k}, got {trials}"
        )
    swapped = np.random.default_rng(0).integers(2, size=(swaps + 1, trials), dtype=np.int8) == 1
    swapped[0] = False  # the first row is what came out
    estimates, errors = _swapped_differences(ours, theirs, k, swapped)
    shares = Shares(
        float(errors[0]),
        _test_error([(ours, 1.0), (theirs, -1.0)], k),
        _validation_error([(ours, 1.0), (theirs, -1.0)], k),
    )
    freedom = degrees_of_freedom(trials, k)
    estimate, half = float(estimates[0]), t_quantile(1 - LEVEL / 2, freedom) * shares.total
    return Difference(
        estimate, estimate - half, estimate + half, _p_value(estimates, errors), shares, freedom
    )


def contrast(signed: Sequence[tuple[Pool, float]], k: int) -> Interval:
    """Return a sum of best-of-k results, each times its factor, with its 95 % interval.

    The error over trials is the jackknife's: trials of one number are left out of all pools at
    once. Test and validation samples have their shares, as in :func:`compare_pools`.

    Parameters
    ----------
    signed : sequence of (Pool, float)
        Pools of equally many trials, and their factors: 1, −1, −1 and 1 for an interaction.
    k : int
        The tuning budget.

    Raises
    ------
    ValueError
        If the pools have different sizes, or fewer than 3k trials.
    """
    sizes = {len(pool) for pool, _ in signed}
    if len(sizes) != 1 or min(sizes) < max(TRIALS_PER_BUDGET * k, 3):
        raise ValueError(
            f"pools must be equally large, of at least {max(TRIALS_PER_BUDGET * k, 3)} trials, got "
            f"{sorted(sizes)}"
        )
    (trials,) = sizes
    others = [np.delete(np.arange(trials), trial) for trial in range(trials)]

    def total(rows: NDArray[np.intp]) -> float:
        return sum(sign * expected_best(pool.take(rows), k) for pool, sign in signed)

    estimate = total(np.arange(trials))
    spread = float(_jackknife_error(np.array([total(rows) for rows in others])))
    error = math.hypot(spread, _test_error(signed, k), _validation_error(signed, k))
    half = t_quantile(1 - LEVEL / 2, degrees_of_freedom(trials, k)) * error
    return Interval(estimate, estimate - half, estimate + half)


def _order(score: Array, loss: Array) -> NDArray[np.intp]:
    """Return the trials' numbers, best first: by score, then loss, then number."""
    return np.lexsort((loss, -score))


def _without_each(test: Array, k: int) -> Array:
    """Return the estimates without the trial of each rank, from test results in order of rank.

    ``test`` may have leading dimensions. What stands before the trial left out keeps its rank,
    what stands behind comes one nearer.
    """
    left = weights(test.shape[-1] - 1, k)
    before = np.cumsum(test[..., :-1] * left, axis=-1)
    behind = np.cumsum((test[..., 1:] * left)[..., ::-1], axis=-1)[..., ::-1]
    none = np.zeros((*test.shape[:-1], 1))
    found: Array = np.concatenate((none, before), -1) + np.concatenate((behind, none), -1)
    return found


def _jackknife_error(without: Array) -> Array:
    count = without.shape[-1]
    error: Array = np.sqrt((count - 1) * without.var(axis=-1))
    return error


def _swapped_differences(
    ours: Pool, theirs: Pool, k: int, swapped: NDArray[np.bool_]
) -> tuple[Array, Array]:
    """Return estimate and jackknife error of the difference for each row of swapped trials."""
    trials = len(ours)
    # A key that orders the trials of both pools: after any swap no two in a pool are equal.
    place = np.empty(2 * trials, dtype=np.intp)
    number = np.tile(np.arange(trials), 2)
    both = [np.concatenate(pair) for pair in ((ours.loss, theirs.loss), (ours.score, theirs.score))]
    place[np.lexsort((number, both[0], -both[1]))] = np.arange(2 * trials)
    test = np.concatenate((ours.test, theirs.test))

    def one_side(side: NDArray[np.bool_]) -> tuple[Array, Array]:
        chosen = np.where(side, trials, 0) + np.arange(trials)
        order = np.argsort(place[chosen], axis=1)
        sorted_test = np.take_along_axis(test[chosen], order, axis=1)
        without = np.empty_like(sorted_test)
        np.put_along_axis(without, order, _without_each(sorted_test, k), axis=1)
        return sorted_test @ weights(trials, k), without

    our_estimates, our_without = one_side(swapped)
    their_estimates, their_without = one_side(~swapped)
    return our_estimates - their_estimates, _jackknife_error(our_without - their_without)


def _p_value(estimates: Array, errors: Array) -> float:
    """Return the share of swaps whose studentised difference is as large as the first row's."""
    # The same difference in every trial has no error, and is as large as can be.
    sizes = np.abs(estimates)
    ratios = np.divide(sizes, errors, out=np.where(sizes > 0, np.inf, 0.0), where=errors > 0)
    # Sums in another order differ in their last digits.
    as_large = ratios[1:] >= ratios[0] * (1 - 1e-9)
    return float((1 + as_large.sum()) / len(ratios))


def _test_error(signed: Sequence[tuple[Pool, float]], k: int) -> float:
    """Return the standard error over test samples of a sum of estimates; 0 where none are kept.

    An estimate is a mean over test samples of the trials' weighted results.
    """
    contributions = [
        sign * (weights(len(pool), k) @ pool.test_samples[_order(pool.score, pool.loss)])
        for pool, sign in signed
        if pool.test_samples is not None
    ]
    if len(contributions) < len(signed):
        return 0.0
    total = np.sum(contributions, axis=0)
    return float(total.std(ddof=1) / math.sqrt(len(total))) if len(total) > 1 else 0.0


def _validation_error(signed: Sequence[tuple[Pool, float]], k: int) -> float:
    """Return the standard error over validation samples, by leaving out one group at a time."""
    kept = [(pool, pool.validation, sign) for pool, sign in signed]
    if any(validation is None for _, validation, _ in kept):
        return 0.0
    without = np.sum(
        [
            [
                sign * expected_best(replace(pool, score=score, loss=loss), k)
                for score, loss in zip(validation.score, validation.loss, strict=True)
            ]
            for pool, validation, sign in kept
            if validation is not None
        ],
        axis=0,
    )
    return float(_jackknife_error(without))
