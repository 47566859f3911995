"""The gap between test and train loss, read where the train loss of all contenders is the same.

Who fits the training data less has a smaller gap, and need not be better on new data for it. So the
test loss of the best of k is moved along the line on which a contender's own good trials lie, to a
train loss that is the same for all.
"""

import math
from typing import NamedTuple

import numpy as np

from steppe._shared.statistics import LEVEL, Interval, t_quantile
from steppe.compare.records.best_of_k import (
    TRIALS_PER_BUDGET,
    Array,
    Pool,
    degrees_of_freedom,
    expected_best,
)
from steppe.compare.records.verdicts import Readings


class CommonLossGap(NamedTuple):
    """A contender's gap at the common train loss, and how it differs from the baseline's.

    Attributes
    ----------
    name : str
        The contender.
    train, gap : float
        Train loss, and test loss − train loss, expected of the best of k.
    at_common : float
        The gap at the common train loss.
    difference : Interval
        Of it from the baseline's, with the 95 % interval of the trials; NaN for the baseline.
    """

    name: str
    train: float
    gap: float
    at_common: float
    difference: Interval


def gaps_at_common_loss(readings: Readings) -> list[CommonLossGap]:
    r"""Return the gap of each contender at a train loss that is common to all.

    With T and L the train and test loss expected of the best of k, and b the slope of test on train
    loss within contenders, over the best N/k trials of each by validation::

        gap at T₀ = L + b·(T₀ − T) − T₀,     T₀ = T of the baseline

    b is one number for all, so differences between contenders depend on T₀ no more:
    ΔL − b·ΔT, which is an analysis of covariance. Errors are a jackknife over trials of one number,
    which all contenders have. Empty where a train loss is missing.
    """
    study = readings.results
    k, names = study.plan.budget, [each.name for each in study.contenders]
    train = [readings.pool_with(name, lambda outcome: outcome.final.train_loss) for name in names]
    test = [readings.pool_with(name, lambda outcome: outcome.final.test_loss) for name in names]
    if not all(np.isfinite(pool.test).all() for pool in (*train, *test)):
        return []
    trains, tests, slope = _fit(train, test, k)
    common = float(trains[0])
    at_common = tests + slope * (common - trains) - common
    errors = _errors(train, test, k)
    half = t_quantile(1 - LEVEL / 2, degrees_of_freedom(len(train[0]), k)) * errors
    differences = at_common - at_common[0]
    return [
        CommonLossGap(
            name,
            float(trains[place]),
            float(tests[place] - trains[place]),
            float(at_common[place]),
            Interval(math.nan, math.nan, math.nan)
            if place == 0
            else Interval(
                float(differences[place]),
                float(differences[place] - half[place]),
                float(differences[place] + half[place]),
            ),
        )
        for place, name in enumerate(names)
    ]


def _fit(train: list[Pool], test: list[Pool], k: int) -> tuple[Array, Array, float]:
    """Return train and test loss expected of the best of k, and the slope within contenders."""
    trains = np.array([expected_best(pool, k) for pool in train])
    tests = np.array([expected_best(pool, k) for pool in test])
    count = max(2, len(train[0]) // k)
    spread = shared = 0.0
    for x, y in zip(train, test, strict=True):
        best = np.lexsort((x.loss, -x.score))[:count]
        dx, dy = (pool.test[best] - pool.test[best].mean() for pool in (x, y))
        spread, shared = spread + float(dx @ dx), shared + float(dx @ dy)
    return trains, tests, shared / spread if spread else 1.0


def _errors(train: list[Pool], test: list[Pool], k: int) -> Array:
    """Return the jackknife error of each contender's difference from the first one."""
    trials = len(train[0])
    if trials < max(TRIALS_PER_BUDGET * k, 3):
        return np.full(len(train), math.nan)
    without = []
    for left_out in range(trials):
        kept = np.delete(np.arange(trials), left_out)
        trains, tests, slope = _fit(
            [pool.take(kept) for pool in train], [pool.take(kept) for pool in test], k
        )
        moved = tests - slope * trains
        without.append(moved - moved[0])
    error: Array = np.sqrt((trials - 1) * np.var(without, axis=0))
    return error
