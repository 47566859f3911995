"""What trained models forget of their task, read at one loss on the second task for all.

Who learns the second task less forgets less of the first. So a trial is read where its validation
loss on the second task first comes down to a loss that is the same for all.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import median
from typing import NamedTuple

import numpy as np

from steppe._shared.statistics import Interval, mean
from steppe.compare.records.best_of_k import Difference, Pool, compare_pools, interval_of_best
from steppe.compare.records.json_format import from_json
from steppe.compare.records.outcomes import FineTuningCurve, Outcome
from steppe.compare.records.results import POOL, StudyResults
from steppe.compare.records.second_task import SecondTask
from steppe.compare.records.summary import outcomes, repeated_trials
from steppe.compare.records.verdicts import Readings

# Of the way of the loss in fine-tuning so much is left at the default common loss: nearly all good
# trials come there, and with smaller learning rates too.
_LEFT = 0.25


class CommonLossForgetting(NamedTuple):
    """A contender's test results on the first task, where the second task's loss is the common one.

    Attributes
    ----------
    name : str
        The contender.
    reached : int
        Trials of the pool that have come down to the common loss.
    loss, lost : Interval
        Test loss, and how much the test score is worse than before fine-tuning, in the metric's
        unit: expected of the best of k.
    loss_difference, lost_difference : Difference or None
        The same minus the baseline's; None for the baseline.
    """

    name: str
    reached: int
    loss: Interval
    lost: Interval
    loss_difference: Difference | None
    lost_difference: Difference | None


class FrontPoint(NamedTuple):
    """Mean test losses on both tasks, of runs that have been fine-tuned for so many steps."""

    step: int
    second: float
    first: float


def second_task(results: StudyResults) -> SecondTask | None:
    """Return what a study's models are fine-tuned on, if anything."""
    content = results.setup.get("then")
    return None if content is None else from_json(SecondTask, content)


def common_loss(results: StudyResults) -> float:
    """Return the second task's validation loss that forgetting is read at.

    The one that the study declares. Else ``lowest + 0.25 · (first − lowest)``: medians, over the
    baseline's pool, of the lowest that a trial reaches with any lr, and of that before fine-tuning.
    NaN where there is none.
    """
    second = second_task(results)
    if second is None:
        return math.nan
    if second.loss is not None:
        return second.loss
    courses = [
        known
        for outcome in outcomes(results.trials_of(results.baseline, POOL))
        if (known := [x for c in outcome.fine_tuning for x in c.second_validation_loss if x == x])
    ]
    if not courses:
        return math.nan
    lowest, first = median(map(min, courses)), median(course[0] for course in courses)
    return lowest + _LEFT * (first - lowest)


def value_at(curve: FineTuningCurve, loss: float, values: Sequence[float]) -> float:
    """Return a value where the second task's validation loss first came down to ``loss``.

    Between two points it is interpolated, by the logarithm of the loss; by the loss itself where
    that is not positive, as a hinge loss that ends at 0. NaN where the curve has not come there.

    Parameters
    ----------
    curve : FineTuningCurve
        Of one lr.
    loss : float
        The second task's validation loss.
    values : sequence of float
        A value for each of the curve's points.

    Examples
    --------
    >>> curve = FineTuningCurve(1e-3, (0, 1), *[(0.0, 0.0)] * 4, (1.0, 0.01), *[(0.0, 0.0)] * 3)
    >>> round(value_at(curve, 0.1, (2.0, 3.0)), 4)
    2.5
    """
    points = list(zip(curve.second_validation_loss, values, strict=True))
    if points[0][0] <= loss:
        return points[0][1]
    for (x, y), (next_x, next_y) in pairwise(points):
        if next_x <= loss < x:
            share = (loss - x) / (next_x - x)
            if next_x > 0:
                share = math.log(loss / x) / math.log(next_x / x)
            return y + share * (next_y - y)
    return math.nan


def least_forgetting(outcome: Outcome, loss: float) -> FineTuningCurve | None:
    """Return a run's curve whose first task has the lowest validation loss at the common loss.

    None where no lr has come there.
    """
    found = [
        (at, curve)
        for curve in outcome.fine_tuning
        if math.isfinite(at := value_at(curve, loss, curve.validation_loss))
    ]
    return min(found, key=lambda each: each[0])[1] if found else None


def forgetting_at_common_loss(readings: Readings) -> list[CommonLossForgetting]:
    """Return what the best of k trials of each contender forgets, by the common loss.

    Trials are chosen by the first task's validation score before fine-tuning, as everywhere; of
    each the lr is taken that forgets least, by validation loss. A trial that diverged, or has not
    come down to the common loss, counts as the worst of all contenders' trials. Empty where there
    is no second task, or no trial has come there.

    Parameters
    ----------
    readings : Readings
        Of a complete study.
    """
    study = readings.results
    common, k = common_loss(study), study.plan.budget
    names = [each.name for each in study.contenders]
    losses = forgetting_pools(readings)
    lost = _pools(readings, lambda outcome: _score_lost_at(study, outcome, common))
    if not losses or not lost:
        return []

    def difference(pools: dict[str, Pool], name: str) -> Difference | None:
        if name == study.baseline:
            return None
        return compare_pools(pools[name], pools[study.baseline], k)

    return [
        CommonLossForgetting(
            name,
            sum(
                outcome is not None and least_forgetting(outcome, common) is not None
                for outcome in readings.outcomes(name)
            ),
            interval_of_best(losses[name], k),
            interval_of_best(lost[name], k),
            difference(losses, name),
            difference(lost, name),
        )
        for name in names
    ]


def forgetting_pools(readings: Readings, loss: float | None = None) -> dict[str, Pool]:
    """Return every contender's trials with the first task's test loss at one loss on the second.

    By default they are those of :func:`forgetting_at_common_loss`.

    Parameters
    ----------
    readings : Readings
        Of a complete study.
    loss : float, optional
        The second task's validation loss, in the place of the study's common one.
    """
    common = common_loss(readings.results) if loss is None else loss
    return _pools(readings, lambda outcome: _loss_at(outcome, common))


def fronts(results: StudyResults) -> dict[str, list[FrontPoint]]:
    """Return test losses on both tasks along fine-tuning, means over runs at recommended settings.

    Of each contender with the lr that forgets least at the common loss, on the mean over its runs;
    without a contender of which a run has come there with no lr.
    """
    common = common_loss(results)
    found = {}
    for contender in results.contenders:
        runs = [o for o in outcomes(repeated_trials(results, contender)) if o.fine_tuning]
        # One tuple of curves for each lr.
        by_lr = list(zip(*(run.fine_tuning for run in runs), strict=True))
        known = [
            (at, curves)
            for curves in by_lr
            if math.isfinite(at := mean(value_at(c, common, c.validation_loss) for c in curves))
        ]
        if known:
            _, curves = min(known, key=lambda each: each[0])
            second = zip(*(curve.second_test_loss for curve in curves), strict=True)
            first = zip(*(curve.test_loss for curve in curves), strict=True)
            steps = curves[0].steps
            found[contender.name] = list(
                map(FrontPoint, steps, map(mean, second), map(mean, first))
            )
    return found


def _loss_at(outcome: Outcome, common: float) -> float:
    curve = least_forgetting(outcome, common)
    return math.nan if curve is None else value_at(curve, common, curve.test_loss)


def _score_lost_at(study: StudyResults, outcome: Outcome, common: float) -> float:
    curve = least_forgetting(outcome, common)
    if curve is None:
        return math.nan
    factor = study.metric.factor * (1 if study.metric.higher_is_better else -1)
    return factor * (curve.test_score[0] - value_at(curve, common, curve.test_score))


def _pools(readings: Readings, measure: Callable[[Outcome], float]) -> dict[str, Pool]:
    """Return every contender's trials with one of their numbers, of which less is better.

    What has none counts as the worst of all; empty if none has one.
    """
    study, found = readings.results, {}
    for contender in study.contenders:
        ended = readings.outcomes(contender.name)
        found[contender.name] = np.array([measure(o) if o else math.nan for o in ended])
    known = np.concatenate(list(found.values()))
    known = known[np.isfinite(known)]
    if not len(known):
        return {}
    return {
        name: replace(
            readings.pool(name, study.plan.primary),
            test=np.where(np.isfinite(values), values, known.max()),
            test_samples=None,
        )
        for name, values in found.items()
    }
