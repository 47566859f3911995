"""A study's results by optimizer, as its tables show them.

Reports and figures read summaries instead of trials. Verdicts are in
:mod:`~steppe.compare.records.verdicts`.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

from steppe._shared.hyperparameters import Settings
from steppe._shared.statistics import Interval, interval, mean
from steppe.compare.records.results import (
    DEFAULT,
    POOL,
    RECOMMENDED,
    ContenderRecord,
    Epoch,
    MetricDescription,
    Outcome,
    StudyResults,
    Trial,
)
from steppe.compare.records.verdicts import Readings

Measure = Callable[[Outcome], float]

# Of the range of what was tried: a winner in the outer tenth may have a better one beyond.
_EDGE = 0.1

_UNKNOWN = Interval(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class OptimizerSummary:
    """A contender's results; those on the test set are NaN before the study is complete.

    Attributes
    ----------
    name : str
        The contender.
    trials, diverged, broken_promises : int
        Trials of the pool that have ended; how many diverged, failed or have no result; and how
        many had a test result far below what their validation result promised.
    score, loss : Interval
        Expected test result of the best of k trials, the score in the metric's unit.
    train_loss, gap : float
        Expected values for the same trial, the best of k; the gap is test loss − train loss.
    untuned : Interval
        Test score at the default settings, over seeds.
    recommended : mapping
        The settings of the best trial of the pool; empty before the pool is complete.
    recommended_score, recommended_loss : Interval
        Test results at those settings, over fresh seeds.
    at_edge : tuple of str
        The recommended settings that lie in the outer tenth of what was tried.
    best_validation : float
        The best validation score of the pool so far, in the metric's unit.
    forgetting : Interval
        Of a stream, in the metric's unit, over runs at the recommended settings:
        :func:`forgetting` on validation data.
    sharpness, largest, trace, preconditioned, threshold : Interval
        Curvature of the training loss at the end of those runs, see
        :class:`~steppe.compare.records.results.Curvature`.
    sharpness_at_common_loss, largest_at_common_loss : Interval
        The same where the train loss was that of :func:`common_train_loss`.
    gradients : float
        Gradient evaluations of a run.
    step_ms : float
        Median over runs of a run's median step.
    seconds : float
        Median training time of a run.
    state_bytes : float
        Optimizer state, in bytes per trainable parameter.
    peak_bytes : float
        Peak memory of a run on the accelerator, in bytes; NaN on CPUs.
    """

    name: str
    trials: int
    diverged: int
    broken_promises: int
    score: Interval
    loss: Interval
    train_loss: float
    gap: float
    untuned: Interval
    recommended: Settings
    recommended_score: Interval
    recommended_loss: Interval
    at_edge: tuple[str, ...]
    best_validation: float
    forgetting: Interval
    sharpness: Interval
    largest: Interval
    trace: Interval
    preconditioned: Interval
    threshold: Interval
    sharpness_at_common_loss: Interval
    largest_at_common_loss: Interval
    gradients: float
    step_ms: float
    seconds: float
    state_bytes: float
    peak_bytes: float


def summarise(results: StudyResults, readings: Readings | None = None) -> list[OptimizerSummary]:
    """Sum up every contender, in the contenders' order.

    Parameters
    ----------
    results : StudyResults
        A study, finished or not.
    readings : Readings, optional
        Those of the same results, if they are at hand: they keep what they have computed.
    """
    readings = readings or Readings(results)
    common = common_train_loss(results)
    return [_summarise_contender(readings, each, common) for each in results.contenders]


def best_first(
    rows: Sequence[OptimizerSummary], metric: MetricDescription
) -> list[OptimizerSummary]:
    """Sort by the expected test score; while that is unknown, by the best validation score.

    Optimizers without a finite score come last.
    """

    def key(row: OptimizerSummary) -> tuple[bool, float]:
        known = math.isfinite(row.score.mean)
        score = row.score.mean if known else row.best_validation
        if not math.isfinite(score):
            return True, 0.0
        return False, -score if metric.higher_is_better else score

    return sorted(rows, key=key)


def best_trial(trials: Iterable[Trial], metric: MetricDescription) -> Trial | None:
    """Return the trial with the best validation score, of equal ones that with the lower loss.

    None if no trial ended with a finite loss.
    """
    sign = 1 if metric.higher_is_better else -1
    found, found_key = None, (-math.inf, -math.inf)
    for trial in trials:
        if outcome := trial.finite_outcome:
            key = (sign * outcome.final.validation_score, -outcome.final.validation_loss)
            if found is None or key > found_key:
                found, found_key = trial, key
    return found


def outcomes(trials: Iterable[Trial]) -> list[Outcome]:
    """Return the outcomes of the trials that ended with a finite loss."""
    return [outcome for trial in trials if (outcome := trial.finite_outcome)]


def repeated_trials(results: StudyResults, contender: ContenderRecord) -> tuple[Trial, ...]:
    """Return the runs at the recommended settings.

    Where nothing is searched all trials have the same settings, and the first ones are these.
    """
    if contender.space:
        return results.trials_of(contender.name, RECOMMENDED)
    return results.trials_of(contender.name, POOL)[: results.plan.repeats]


def repeated_runs(results: StudyResults, name: str) -> dict[int, Outcome]:
    """Return a contender's runs at the recommended settings that ended with a finite loss, by seed.

    Parameters
    ----------
    results : StudyResults
        A study.
    name : str
        One of its contenders.
    """
    (contender,) = (each for each in results.contenders if each.name == name)
    return {
        trial.seed: outcome
        for trial in repeated_trials(results, contender)
        if (outcome := trial.finite_outcome)
    }


def recommended_settings(results: StudyResults, name: str) -> Settings:
    """Return the settings of a contender's best trial; empty before its pool is complete."""
    pool = results.trials_of(name, POOL)
    best = best_trial(pool, results.metric) if len(pool) == results.plan.trials else None
    return best.settings if best else {}


def common_train_loss(results: StudyResults) -> float:
    """Return the lowest train loss that all runs at recommended settings have come through.

    Curvature shrinks with the train loss: at equal loss it can be compared. NaN where it was not
    measured along the way.
    """
    lowest = [
        min(known)
        for contender in results.contenders
        for outcome in outcomes(repeated_trials(results, contender))
        if (known := [e.probe_loss for e in outcome.curve if math.isfinite(e.probe_loss)])
    ]
    return max(lowest, default=math.nan)


def curvature_at(curve: Sequence[Epoch], loss: float, measure: str) -> float:
    """Return a measure of curvature where a run's train loss first came down to ``loss``.

    Between two epochs it is interpolated, both by their logarithms. NaN where the run has not come
    there, or the measure is not positive.

    Parameters
    ----------
    curve : sequence of Epoch
        A run.
    loss : float
        The train loss, above 0.
    measure : {"sharpness", "largest"}
        What is wanted.

    Examples
    --------
    >>> epochs = [
    ...     Epoch(1.0, 1.0, 0.5, 0.1, 1.0, probe_loss=1.0, sharpness=1.0),
    ...     Epoch(0.1, 1.0, 0.5, 0.1, 2.0, probe_loss=0.01, sharpness=0.1),
    ... ]
    >>> round(curvature_at(epochs, 0.1, "sharpness"), 4)
    0.3162
    """
    points: list[tuple[float, float]] = [(e.probe_loss, getattr(e, measure)) for e in curve]
    known = [(x, y) for x, y in points if x > 0 and y > 0 and math.isfinite(x + y)]
    if known and math.isclose(known[0][0], loss):
        return known[0][1]
    for (x, y), (next_x, next_y) in pairwise(known):
        if next_x <= loss < x:
            share = math.log(loss / x) / math.log(next_x / x)
            return y * math.exp(share * math.log(next_y / y))
    return math.nan


def forgetting(curve: Sequence[Sequence[float]]) -> float:
    """Return how much accuracy on earlier tasks is lost at the end of a stream of K tasks.

    ``1/(K−1) Σ_{j<K−1} max_{j≤k<K−1} a[k][j] − a[K−1][j]`` (Chaudhry et al. 2018). Below 0, later
    tasks have helped with earlier ones.

    Parameters
    ----------
    curve : sequence of sequences of float
        ``a[k][j]``, the accuracy on task j after training on task k; both count from 0, and
        ``j > k`` may be left out.

    Raises
    ------
    ValueError
        If there are fewer than two tasks, or a task has no accuracy after itself or a later one.

    Examples
    --------
    >>> forgetting([[0.75, 0.0, 0.0], [0.5, 1.0, 0.0], [0.5, 0.75, 1.0]])
    0.25
    """
    last = len(curve) - 1
    if last < 1:
        raise ValueError(f"forgetting needs a curve of at least 2 tasks, got {len(curve)}")
    for k, row in enumerate(curve):
        if len(row) <= k:
            raise ValueError(f"curve[{k}] must hold at least {k + 1} accuracies, got {len(row)}")
    best = [max(curve[k][j] for k in range(j, last)) for j in range(last)]
    return mean(best[j] - curve[last][j] for j in range(last))


def _summarise_contender(
    readings: Readings, contender: ContenderRecord, common: float
) -> OptimizerSummary:
    results, name = readings.results, contender.name
    pool, factor = results.trials_of(name, POOL), results.metric.factor
    again = outcomes(repeated_trials(results, contender))
    untuned = outcomes(results.trials_of(name, DEFAULT))
    best = best_trial(pool, results.metric)
    best_score = best.outcome.final.validation_score if best and best.outcome else math.nan
    settings = recommended_settings(results, name)

    def over(runs: Sequence[Outcome], measure: Measure, *, of_test: bool = False) -> Interval:
        hidden = of_test and not results.complete
        return _UNKNOWN if hidden else interval([measure(run) for run in runs])

    def score(outcome: Outcome) -> float:
        return factor * outcome.final.test_score

    def loss(outcome: Outcome) -> float:
        return outcome.final.test_loss

    return OptimizerSummary(
        name=name,
        trials=len(pool),
        diverged=readings.count_unsuccessful(name),
        broken_promises=readings.count_broken_promises(name) if results.complete else 0,
        **_expected(readings, name),
        untuned=over(untuned, score, of_test=True),
        recommended=settings,
        recommended_score=over(again, score, of_test=True),
        recommended_loss=over(again, loss, of_test=True),
        at_edge=_settings_at_edge(contender, settings, pool),
        best_validation=factor * best_score,
        forgetting=over(again, lambda outcome: factor * _forgetting_of(outcome)),
        sharpness=over(again, lambda outcome: outcome.curvature.sharpness),
        largest=over(again, lambda outcome: outcome.curvature.largest),
        trace=over(again, lambda outcome: outcome.curvature.trace),
        preconditioned=over(again, lambda outcome: outcome.curvature.preconditioned),
        threshold=over(again, lambda outcome: outcome.curvature.threshold),
        sharpness_at_common_loss=over(again, lambda o: curvature_at(o.curve, common, "sharpness")),
        largest_at_common_loss=over(again, lambda o: curvature_at(o.curve, common, "largest")),
        **_costs([trial.outcome for trial in results.trials if trial.optimizer == name]),
    )


def _expected(readings: Readings, name: str) -> dict[str, Any]:
    """Return what the best of k trials is expected to reach."""
    if not readings.results.complete:
        return {"score": _UNKNOWN, "loss": _UNKNOWN, "train_loss": math.nan, "gap": math.nan}
    k = readings.results.plan.budget
    return {
        "score": readings.expected(name, "score", k),
        "loss": readings.expected(name, "loss", k),
        "train_loss": readings.expected_mean(name, lambda outcome: outcome.final.train_loss),
        "gap": readings.expected_mean(
            name, lambda outcome: outcome.final.test_loss - outcome.final.train_loss
        ),
    }


def _costs(ended: Iterable[Outcome | None]) -> dict[str, Any]:
    costs = [outcome.costs for outcome in ended if outcome]
    return {
        "gradients": _over_known(max, (each.gradients for each in costs)),
        "step_ms": _over_known(median, (each.step_ms for each in costs)),
        "seconds": _over_known(median, (each.seconds for each in costs)),
        "state_bytes": _over_known(max, (each.state_bytes for each in costs)),
        "peak_bytes": _over_known(max, (each.peak_bytes for each in costs)),
    }


def _settings_at_edge(
    contender: ContenderRecord, settings: Settings, pool: Iterable[Trial]
) -> tuple[str, ...]:
    """Name the settings in the outer tenth of what was tried: the best may lie beyond."""
    tried = [trial.settings for trial in pool]
    return tuple(
        name
        for name, space in contender.space.items()
        if name in settings and "low" in space
        if _is_at_edge(settings[name], [each[name] for each in tried], space)
    )


def _is_at_edge(value: float, tried: Sequence[float], space: Mapping[str, Any]) -> bool:
    scale = math.log if space.get("log") else float
    low, high = scale(min(tried)), scale(max(tried))
    return high > low and not _EDGE < (scale(value) - low) / (high - low) < 1 - _EDGE


def _forgetting_of(outcome: Outcome) -> float:
    """Return a run's forgetting, from the epoch that ends each task; NaN without a stream."""
    ends = {len(epoch.tasks): epoch.tasks for epoch in outcome.curve}
    return forgetting(list(ends.values())) if len(ends) > 1 else math.nan


def _over_known(over: Callable[[list[float]], float], values: Iterable[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return over(known) if known else math.nan
