"""A study's test runs summed up over seeds: means with intervals, and tests of differences.

Reports and figures read summaries instead of trials.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from steppe._shared.hyperparameters import Settings
from steppe._shared.names import unknown_name_message
from steppe._shared.statistics import (
    Comparison,
    Interval,
    compare,
    corrected,
    interval,
    mean,
    paired,
)
from steppe.compare.records.results import (
    TEST,
    TUNE,
    Metric,
    Outcome,
    StudyResults,
    Trial,
)

# A number by contender, then by seed.
ValuesBySeed = Mapping[str, Mapping[int, float]]
Measure = Callable[[Outcome], float]


@dataclass(frozen=True)
class OptimizerSummary:
    """A contender's results over the test seeds that neither diverged nor failed.

    Attributes
    ----------
    name : str
        The contender.
    runs, diverged, failed : int
        Test runs that have ended, and how many of them diverged or failed; those are in no mean.
    score : Interval
        On the test set, in the metric's unit.
    forgetting : Interval
        Of a stream, in the metric's unit: :func:`forgetting` on validation data.
    test_loss, train_loss, gap : Interval
        Of the trained models; the gap is test loss − train loss.
    sharpness, largest, trace, preconditioned, threshold : Interval
        Of the training loss at the runs' end, see
        :class:`~steppe.compare.records.results.Curvature`.
    step_ms : float
        Median over runs of a run's median step.
    seconds : float
        Median training time of a run.
    state_bytes : float
        Optimizer state, in bytes per trainable parameter.
    peak_bytes : float
        Peak memory of a run on the accelerator, in bytes; NaN on CPUs.
    settings : mapping
        The hyperparameters that all its test runs had; empty before the first has ended.
    score_change, loss_change : Comparison or None
        Score, in the metric's unit, and test loss minus the baseline's, seed by seed; corrected for
        the number of contenders. None of the baseline itself.
    """

    name: str
    runs: int
    diverged: int
    failed: int
    score: Interval
    forgetting: Interval
    test_loss: Interval
    train_loss: Interval
    gap: Interval
    sharpness: Interval
    largest: Interval
    trace: Interval
    preconditioned: Interval
    threshold: Interval
    step_ms: float
    seconds: float
    state_bytes: float
    peak_bytes: float
    settings: Settings
    score_change: Comparison | None
    loss_change: Comparison | None


@dataclass(frozen=True)
class ControlComparison:
    """A contender minus its control, seed by seed.

    Attributes
    ----------
    name, control : str
        The two contenders.
    score, loss : Comparison
        Test score, in the metric's unit, and test loss; corrected for the number of such
        comparisons.
    """

    name: str
    control: str
    score: Comparison
    loss: Comparison


def summarise(results: StudyResults, baseline: str | None = None) -> list[OptimizerSummary]:
    """Sum up every contender's test runs, in the contenders' order.

    Parameters
    ----------
    results : StudyResults
        A study, finished or not.
    baseline : str or None, default None
        The contender that the others are compared with; None takes the first.

    Raises
    ------
    ValueError
        No contender is called ``baseline``.
    """
    names = [each.name for each in results.contenders]
    baseline = baseline_of(results, baseline)
    scores = compare(_by_contender(results, names, _score(results)), baseline)
    losses = compare(_by_contender(results, names, _test_loss), baseline)
    return [
        _summarise_contender(results, name, scores.get(name), losses.get(name)) for name in names
    ]


def against_controls(results: StudyResults) -> list[ControlComparison]:
    """Compare each contender that has a control with it, all pairs as one Holm family."""
    pairs = [(name, each.name) for each in results.contenders for name in each.control_for]
    names = {name for pair in pairs for name in pair}
    scores = _paired_comparisons(_by_contender(results, names, _score(results)), pairs)
    losses = _paired_comparisons(_by_contender(results, names, _test_loss), pairs)
    return [
        ControlComparison(*pair, score, loss)
        for pair, score, loss in zip(pairs, scores, losses, strict=True)
    ]


def baseline_of(results: StudyResults, baseline: str | None) -> str:
    """Return the baseline's name: the first contender's if none is given.

    Raises
    ------
    ValueError
        No contender is called so.
    """
    names = [each.name for each in results.contenders]
    if baseline is None:
        return names[0]
    if baseline not in names:
        raise ValueError(f"baseline: {unknown_name_message('contender', baseline, names)}")
    return baseline


def finished(results: StudyResults, name: str) -> dict[int, Outcome]:
    """Return a contender's test runs that neither diverged nor failed, by seed."""
    return {
        trial.seed: trial.outcome
        for trial in results.trials_of(name, TEST)
        if trial.outcome is not None and not trial.outcome.diverged
    }


def best_first(rows: Sequence[OptimizerSummary], metric: Metric) -> list[OptimizerSummary]:
    """Sort by test score; those without one come last."""

    def key(row: OptimizerSummary) -> tuple[bool, float]:
        score = row.score.mean
        known = math.isfinite(score)
        return not known, (-score if metric.higher_is_better else score) if known else 0.0

    return sorted(rows, key=key)


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


def chosen_trial(results: StudyResults, name: str) -> Trial | None:
    """Return the tuning trial whose settings the test runs took over; None before the first."""
    chosen = results.chosen(name)
    trials = (trial for trial in results.trials_of(name, TUNE) if trial.settings == chosen)
    return next(trials, None)


def _summarise_contender(
    results: StudyResults, name: str, score: Comparison | None, loss: Comparison | None
) -> OptimizerSummary:
    trials = results.trials_of(name, TEST)
    ended = [trial.outcome for trial in trials if trial.outcome is not None]
    successful = list(finished(results, name).values())

    def over_seeds(measure: Measure) -> Interval:
        return interval([measure(outcome) for outcome in successful])

    return OptimizerSummary(
        name=name,
        runs=len(trials),
        diverged=len(ended) - len(successful),
        failed=len(trials) - len(ended),
        score=over_seeds(_score(results)),
        forgetting=over_seeds(lambda outcome: results.metric.factor * _forgetting_of(outcome)),
        test_loss=over_seeds(_test_loss),
        train_loss=over_seeds(lambda outcome: outcome.final.train_loss),
        gap=over_seeds(lambda outcome: outcome.final.test_loss - outcome.final.train_loss),
        sharpness=over_seeds(lambda outcome: outcome.curvature.sharpness),
        largest=over_seeds(lambda outcome: outcome.curvature.largest),
        trace=over_seeds(lambda outcome: outcome.curvature.trace),
        preconditioned=over_seeds(lambda outcome: outcome.curvature.preconditioned),
        threshold=over_seeds(lambda outcome: outcome.curvature.threshold),
        step_ms=_over_known(median, (outcome.costs.step_ms for outcome in successful)),
        seconds=_over_known(median, (outcome.costs.seconds for outcome in successful)),
        state_bytes=_over_known(max, (outcome.costs.state_bytes for outcome in ended)),
        peak_bytes=_over_known(max, (outcome.costs.peak_bytes for outcome in ended)),
        settings=results.chosen(name),
        score_change=score,
        loss_change=loss,
    )


def _paired_comparisons(values: ValuesBySeed, pairs: Iterable[tuple[str, str]]) -> list[Comparison]:
    return corrected([paired(values[name], values[control]) for name, control in pairs])


def _by_contender(results: StudyResults, names: Iterable[str], measure: Measure) -> ValuesBySeed:
    return {
        name: {seed: measure(outcome) for seed, outcome in finished(results, name).items()}
        for name in names
    }


def _forgetting_of(outcome: Outcome) -> float:
    """Return a run's forgetting, from the epoch that ends each task; NaN without a stream."""
    ends = {len(epoch.tasks): epoch.tasks for epoch in outcome.curve}
    return forgetting(list(ends.values())) if len(ends) > 1 else math.nan


def _over_known(over: Callable[[list[float]], float], values: Iterable[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return over(known) if known else math.nan


def _score(results: StudyResults) -> Measure:
    return lambda outcome: results.metric.factor * outcome.final.test_score


def _test_loss(outcome: Outcome) -> float:
    return outcome.final.test_loss
