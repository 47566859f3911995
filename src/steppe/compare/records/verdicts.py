"""What a complete study shows: verdicts on its primary reading, and everything else to explore.

A *reading* is what is compared: the task's score or the loss, on the test set. The one that the
plan declares is the primary reading: each optimizer that the user has named is compared with the
baseline at the declared budget, as one family corrected after Holm. All other differences are
exploratory, without a verdict.

Tables, pictures, the page and ``--json`` take their numbers from here.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from steppe._shared.names import unknown_name_message
from steppe._shared.statistics import LEVEL, Interval, holm
from steppe.compare.records.best_of_k import (
    TRIALS_PER_BUDGET,
    Array,
    Difference,
    Pool,
    Validation,
    compare_pools,
    expected_best,
    interval_of_best,
)
from steppe.compare.records.broken_promises import BrokenPromises
from steppe.compare.records.choices import Primary
from steppe.compare.records.of_mean import SLOPE
from steppe.compare.records.packed_numbers import unpack
from steppe.compare.records.results import POOL, Outcome, StudyResults
from steppe.compare.records.sample_groups import leave_groups_out
from steppe.compare.records.trials_needed import fewest_trials

BETTER, WORSE = "better", "worse"
NO_DIFFERENCE = "no difference seen"
EXPLORATORY = "exploratory"
PLAN_CHANGED = "no verdict: the plan was changed"
TOO_FEW = "no verdict: too few trials"
NO_RESULTS = "no verdict: no trial has a result"

# Squares of larger results overflow.
_HUGE = 1e100


@dataclass(frozen=True)
class Verdict:
    """One optimizer against the baseline on the primary reading.

    Attributes
    ----------
    optimizer, baseline : str
        The two contenders.
    metric : str
        What was compared, such as "accuracy" or "loss".
    k, trials : int
        The budget, and the trials of each.
    estimate, low, high : float
        The difference in the test result of the best of k, with its 95 % interval, in the metric's
        unit.
    p : float
        Corrected after Holm for the optimizers that the user has named; as it is where the verdict
        is "exploratory".
    verdict : str
        "better", "worse", "no difference seen", or why there is none, such as too few trials.
    """

    optimizer: str
    baseline: str
    metric: str
    k: int
    trials: int
    estimate: float
    low: float
    high: float
    p: float
    verdict: str


class Readings:
    """Everything that can be read from a study's pool of trials.

    Nothing can be read before all trials have ended: until then nobody is to see a test result.

    Parameters
    ----------
    results : StudyResults
        A study, finished or not.
    """

    def __init__(self, results: StudyResults) -> None:
        self.results = results
        self._pools: dict[tuple[str, str], Pool] = {}
        self._validations: dict[str, Validation | None] = {}
        self._differences: dict[tuple[str, str, str, int], Difference] = {}
        self._expected: dict[tuple[str, str, int, bool], Interval] = {}

    @property
    def budgets(self) -> range:
        """The budgets k that N trials can tell something about: 1 … N/3."""
        return range(1, self.results.plan.trials // TRIALS_PER_BUDGET + 1)

    def higher_is_better(self, reading: Primary) -> bool:
        """Whether more of a reading is better."""
        return reading == "score" and self.results.metric.higher_is_better

    def label(self, reading: Primary) -> str:
        """Return the reading's name, such as "accuracy" or "loss"."""
        return self.results.metric.name if reading == "score" else "loss"

    def expected(self, name: str, reading: Primary, k: int, *, samples: bool = True) -> Interval:
        """Return the expected test result of the best of k, in the metric's unit.

        ``samples`` is that of :func:`~steppe.compare.records.best_of_k.interval_of_best`.
        """
        key = (name, reading, k, samples)
        if key not in self._expected:
            self._expected[key] = interval_of_best(self.pool(name, reading), k, samples=samples)
        return self._expected[key]

    def expected_mean(self, name: str, measure: Callable[[Outcome], float]) -> float:
        """Return the expected value of any number of the trial that is the best of the budget's k.

        A trial without one, as one that diverged, has that of the trial chosen last of the others;
        NaN if none has one.
        """
        return expected_best(self.pool_with(name, measure), self.results.plan.budget)

    def pool_with(self, name: str, measure: Callable[[Outcome], float]) -> Pool:
        """Return a contender's trials with any number of theirs, as :meth:`expected_mean` does."""
        pool = self.pool(name, self.results.plan.primary)
        values = np.array([measure(o) if o else math.nan for o in self.outcomes(name)])
        known = np.isfinite(values)
        if known.any():
            values[~known] = values[known][np.argmin(pool.score[known])]
        return Pool(pool.score, pool.loss, values)

    def difference(self, name: str, baseline: str, reading: Primary, k: int) -> Difference:
        """Return one optimizer minus another, in the metric's unit; p is not corrected."""
        key = (name, baseline, reading, k)
        if key not in self._differences:
            pools = self.pool(name, reading), self.pool(baseline, reading)
            found = compare_pools(*pools, k)
            if math.isnan(found.estimate):
                found = replace(found, p=math.nan)
            self._differences[key] = found
        return self._differences[key]

    @cached_property
    def verdicts(self) -> list[Verdict]:
        """The differences from the baseline on the primary reading; none of an unfinished study."""
        results = self.results
        if not results.complete:
            return []
        reading, k = results.plan.primary, results.plan.budget
        others = results.contenders[1:]
        found = {
            each.name: self.difference(each.name, results.baseline, reading, k) for each in others
        }
        family = results.plan.family
        corrected = dict(zip(family, holm([found[name].p for name in family]), strict=True))
        return [
            Verdict(
                optimizer=name,
                baseline=results.baseline,
                metric=self.label(reading),
                k=k,
                trials=results.plan.trials,
                estimate=each.estimate,
                low=each.low,
                high=each.high,
                p=corrected.get(name, each.p),
                verdict=self._verdict(each, corrected.get(name)),
            )
            for name, each in found.items()
        ]

    @property
    def can_decide(self) -> bool:
        """Whether any difference, however large, could have p < 0.05 after Holm's correction."""
        plan = self.results.plan
        return plan.trials >= fewest_trials(max(1, len(plan.family)))

    @property
    def has_samples(self) -> tuple[bool, bool]:
        """Whether all trials have the primary reading by test sample, and by validation sample."""
        reading = self.results.plan.primary
        pools = [self.pool(each.name, reading) for each in self.results.contenders]
        return (
            all(pool.test_samples is not None for pool in pools),
            all(pool.validation is not None for pool in pools),
        )

    def detectable(self, name: str) -> float:
        """Return the smallest difference from the baseline that 80 % of such studies would find."""
        plan = self.results.plan
        found = self.difference(name, self.results.baseline, plan.primary, plan.budget)
        return found.detectable(max(1, len(plan.family)))

    def count_unsuccessful(self, name: str) -> int:
        """Count the trials of the pool that diverged, failed, or ended without a result."""
        return sum(each is None or not self.has_result(each) for each in self.outcomes(name))

    def has_result(self, outcome: Outcome) -> bool:
        """Whether the primary reading has a value: on test data too, once the study is complete."""
        test, validation = self.values(outcome, self.results.plan.primary)
        return math.isfinite(validation) and (math.isfinite(test) or not self.results.complete)

    def count_broken_promises(self, name: str) -> int:
        """Count the trials whose test result is far below what their validation result promises."""
        return self._promises.count(name)

    @cached_property
    def _promises(self) -> BrokenPromises:
        return BrokenPromises(self)

    def _verdict(self, found: Difference, corrected: float | None) -> str:
        if math.isnan(found.estimate):
            return NO_RESULTS
        if corrected is None:
            return EXPLORATORY
        if self.results.earlier_plans:
            return PLAN_CHANGED
        if not self.can_decide:
            return TOO_FEW
        if corrected >= LEVEL:
            return NO_DIFFERENCE
        better = (found.estimate > 0) == self.higher_is_better(self.results.plan.primary)
        return BETTER if better else WORSE

    def outcomes(self, name: str) -> list[Outcome | None]:
        """Return the outcomes of a contender's pool; None of a trial that failed or diverged."""
        return [trial.finite_outcome for trial in self.results.trials_of(name, POOL)]

    def pool(self, name: str, reading: Primary) -> Pool:
        """Return a contender's pool of trials.

        Raises
        ------
        ValueError
            If the study is not complete, or has no such contender.
        """
        if not self.results.complete:
            raise ValueError("results must be those of a finished study: trials are still missing")
        names = [each.name for each in self.results.contenders]
        if name not in names:
            raise ValueError(unknown_name_message("optimizer", name, names))
        if (name, reading) not in self._pools:
            self._pools[name, reading] = self._make_pool(name, reading)
        return self._pools[name, reading]

    def _make_pool(self, name: str, reading: Primary) -> Pool:
        outcomes = self.outcomes(name)
        sign = 1.0 if self.results.metric.higher_is_better else -1.0
        worst = self._worst(reading)
        # What chooses is the same whatever is read.
        if name not in self._validations:
            self._validations[name] = self._validation(outcomes, sign)

        def each(measure: Callable[[Outcome], float], otherwise: float) -> Array:
            values = [otherwise if outcome is None else measure(outcome) for outcome in outcomes]
            return np.array([value if math.isfinite(value) else otherwise for value in values])

        return Pool(
            score=each(lambda outcome: sign * outcome.final.validation_score, -math.inf),
            loss=each(lambda outcome: outcome.final.validation_loss, math.inf),
            test=each(lambda outcome: self.values(outcome, reading)[0], worst),
            test_samples=_matrix(
                outcomes, lambda outcome: self.samples(outcome, "test", reading), worst
            ),
            validation=self._validations[name],
        )

    def _worst(self, reading: Primary) -> float:
        """Return the worst finite test result of the study: what a trial that diverged is worth.

        NaN if there is none at all.
        """
        ended = (
            outcome
            for contender in self.results.contenders
            for outcome in self.outcomes(contender.name)
            if outcome is not None
        )
        values = [self.values(outcome, reading)[0] for outcome in ended]
        finite = [value for value in values if math.isfinite(value)]
        worst: Callable[..., float] = min if self.higher_is_better(reading) else max
        return worst(finite, default=math.nan)

    def values(self, outcome: Outcome, reading: Primary) -> tuple[float, float]:
        """Return a trial's test and validation result; what is beyond all numbers is infinite."""
        final, factor = outcome.final, self.results.metric.factor
        found = final.test_loss, final.validation_loss
        if reading == "score":
            found = factor * final.test_score, factor * final.validation_score
        test, validation = (x if abs(x) < _HUGE else math.copysign(math.inf, x) for x in found)
        return test, validation

    def samples(self, outcome: Outcome, part: str, reading: Primary) -> Array | None:
        """Return the samples' shares in a result, whose mean it is up to a constant."""
        values = _values_of_samples(outcome, part, reading)
        if values is None or reading == "loss":
            return values
        # To first order: times the derivative of the score by the mean over samples.
        slope = SLOPE[self.results.metric.of_mean](float(values.mean()))
        return self.results.metric.factor * slope * values

    def _validation(self, outcomes: Sequence[Outcome | None], sign: float) -> Validation | None:
        """Return all trials' validation results without each group of samples."""

        def samples(reading: Primary) -> Array | None:
            def of_run(outcome: Outcome) -> Array | None:
                return _values_of_samples(outcome, "validation", reading)

            return _matrix(outcomes, of_run, 0.0)

        values, losses = samples("score"), samples("loss")
        if values is None:
            return None
        # The same samples are left out of both.
        fewest = None if losses is None else min(values.shape[1], losses.shape[1])
        diverged = np.array([outcome is None for outcome in outcomes])
        # Only their order counts, which is that of the means.
        scores = np.where(diverged, -np.inf, sign * leave_groups_out(values, fewest))
        if losses is not None:
            return Validation(scores, np.where(diverged, np.inf, leave_groups_out(losses, fewest)))
        whole = [math.inf if each is None else each.final.validation_loss for each in outcomes]
        return Validation(scores, np.broadcast_to(whole, scores.shape))


def difference_by_budget(
    readings: Readings, name: str, baseline: str, reading: Primary
) -> list[Interval]:
    """Return one optimizer minus another for each budget that a study's trials tell about."""
    pools = readings.pool(name, reading), readings.pool(baseline, reading)
    # Without p values, which take most of the time.
    found = (compare_pools(*pools, k, swaps=0) for k in readings.budgets)
    return [Interval(each.estimate, each.low, each.high) for each in found]


def verdicts(results: StudyResults) -> list[dict[str, Any]]:
    """Return :attr:`Readings.verdicts` as plain values, as ``--json`` has them."""
    return [vars(each) for each in Readings(results).verdicts]


def _values_of_samples(outcome: Outcome, part: str, reading: Primary) -> Array | None:
    kind = "losses" if reading == "loss" else "scores"
    values = unpack(getattr(outcome.samples, f"{part}_{kind}"))
    return values if len(values) else None


def _matrix(
    outcomes: Sequence[Outcome | None],
    samples: Callable[[Outcome], Array | None],
    otherwise: float,
) -> Array | None:
    """Return what all trials have for each sample; None if a trial has nothing."""
    rows = [None if outcome is None else samples(outcome) for outcome in outcomes]
    return _stacked(rows, sum(outcome is not None for outcome in outcomes), otherwise)


def _stacked(rows: Sequence[Array | None], wanted: int, otherwise: float) -> Array | None:
    """Stack rows, with a constant in the place of those missing; None if there are too few."""
    known = [row for row in rows if row is not None]
    if len(known) < wanted or not known:
        return None
    constant = np.full(len(known[0]), otherwise)
    return np.array([constant if row is None else np.nan_to_num(row) for row in rows])
