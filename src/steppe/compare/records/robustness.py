"""What the best of k trials keeps of its score once its weights or inputs are changed.

What chooses the best is clean validation data or, of the same trials and without a second training,
the robust measure itself. All of it is exploratory, unless it was declared elsewhere before.
"""

import math
from collections.abc import Sequence
from functools import cached_property
from statistics import fmean

import numpy as np

from steppe._shared.statistics import Interval
from steppe.compare.records.best_of_k import (
    Array,
    Difference,
    Pool,
    Validation,
    compare_pools,
    interval_of_best,
)
from steppe.compare.records.measure_names import (
    CORRUPTED,
    NOT_SCORES,
    WEIGHTS,
    is_rounding,
    split_name,
)
from steppe.compare.records.of_mean import OF_MEAN, SLOPE
from steppe.compare.records.outcomes import Outcome, PerturbedScores
from steppe.compare.records.packed_numbers import unpack
from steppe.compare.records.sample_groups import leave_groups_out
from steppe.compare.records.verdicts import Readings


class RobustReadings:
    """Readings of a finished study whose runs were measured with perturbations.

    Parameters
    ----------
    readings : Readings
        Those of the study.
    """

    def __init__(self, readings: Readings) -> None:
        self.readings = readings
        self._pools: dict[tuple[str, str, bool], Pool] = {}
        self._worst_values: dict[str, float] = {}
        self._differences: dict[tuple[str, str, str, bool], Difference] = {}

    @cached_property
    def measures(self) -> list[str]:
        """What was measured of all runs, in the order of the measurement; empty if nothing was."""
        return [*self._measured, *([CORRUPTED] if len(self.corruptions) > 1 else [])]

    @cached_property
    def scales(self) -> dict[str, list[str]]:
        """The scores after perturbations of one kind, from mild to strong, by the kind's name."""
        found: dict[str, list[str]] = {}
        for measure in self._measured:
            if split_name(measure).amount is not None and self.is_score(measure):
                found.setdefault(split_name(measure).group, []).append(measure)
        return {
            group: sorted(
                each, key=lambda name: split_name(name).amount or 0.0, reverse=is_rounding(group)
            )
            for group, each in found.items()
        }

    @property
    def scales_of_weights(self) -> dict[str, list[str]]:
        """Those of :attr:`scales` that change weights."""
        return {group: each for group, each in self.scales.items() if group.startswith(WEIGHTS)}

    @cached_property
    def corruptions(self) -> list[str]:
        """The measures that are scores with corrupted inputs."""
        kinds = self.scales.keys() - self.scales_of_weights.keys()
        return [name for group, names in self.scales.items() if group in kinds for name in names]

    @property
    def budget(self) -> int:
        """The declared budget k."""
        return self.readings.results.plan.budget

    def higher_is_better(self, measure: str) -> bool:
        """Whether more of a measure is better; of one of the user's own it is."""
        if measure in NOT_SCORES:
            return False
        return not self.is_score(measure) or self.readings.results.metric.higher_is_better

    def is_score(self, measure: str) -> bool:
        """Whether a measure is the task's metric after a perturbation."""
        return measure == CORRUPTED or measure in self._with_loss

    def expected(self, name: str, measure: str, *, tuned: bool = False) -> Interval:
        """Return the expected value of the best of the declared budget's k, with its interval.

        ``tuned`` chooses by the measure's own validation value in the place of the clean score.
        """
        return interval_of_best(self.pool(name, measure, tuned=tuned), self.budget)

    def difference(
        self, name: str, baseline: str, measure: str, *, tuned: bool = False
    ) -> Difference:
        """Return one contender minus another; p is not corrected."""
        key = name, baseline, measure, tuned
        if key not in self._differences:
            ours, theirs = (self.pool(each, measure, tuned=tuned) for each in (name, baseline))
            self._differences[key] = compare_pools(ours, theirs, self.budget)
        return self._differences[key]

    def change(self, name: str, baseline: str, measure: str, *, tuned: bool = False) -> Interval:
        """Return :meth:`difference` without p, which takes nearly all of its time."""
        ours, theirs = (self.pool(each, measure, tuned=tuned) for each in (name, baseline))
        found = compare_pools(ours, theirs, self.budget, swaps=0)
        return Interval(found.estimate, found.low, found.high)

    def pool(self, name: str, measure: str, *, tuned: bool = False) -> Pool:
        """Return a contender's trials: what chooses them, and the measure's test value of each.

        A trial that diverged has the worst value of all trials of the study.
        """
        key = name, measure, tuned
        if key not in self._pools:
            self._pools[key] = self._make_pool(*key)
        return self._pools[key]

    @cached_property
    def _measured(self) -> list[str]:
        if not self.readings.results.complete:
            return []
        named = [list(outcome.robustness) for outcome in self._ended]
        return [name for name in (named[0] if named else []) if all(name in n for n in named)]

    @cached_property
    def _with_loss(self) -> set[str]:
        """The measures that have a loss of some trial."""
        return {
            name
            for outcome in self._ended
            for name, found in outcome.robustness.items()
            if math.isfinite(found.test_loss)
        }

    @cached_property
    def _ended(self) -> list[Outcome]:
        """The outcomes of all trials that did not diverge."""
        return [
            outcome
            for contender in self.readings.results.contenders
            for outcome in self.readings.outcomes(contender.name)
            if outcome is not None
        ]

    def _make_pool(self, name: str, measure: str, tuned: bool) -> Pool:
        found = self._found(name, measure)
        factor = self.readings.results.metric.factor if self.is_score(measure) else 1.0
        worst = self._worst(measure)

        def of_each(field: str, otherwise: float) -> Array:
            values = [math.nan if each is None else getattr(each, field) for each in found]
            return np.array([value if math.isfinite(value) else otherwise for value in values])

        test = factor * of_each("test_score", worst)
        samples = None
        if parts := self._stretches(name, measure, "test"):
            # To first order: times the derivative of each score by the mean over its samples.
            samples = factor * np.mean([self._slopes(each) * each for each in parts], axis=0)
        clean = self.readings.pool(name, "score")
        if not tuned:
            return Pool(clean.score, clean.loss, test, samples, clean.validation)
        sign = 1.0 if self.higher_is_better(measure) else -1.0
        score = sign * of_each("validation_score", -sign * math.inf)
        loss = of_each("validation_loss", math.inf)
        return Pool(score, loss, test, samples, self._validation(name, measure, score, loss))

    def _validation(self, name: str, measure: str, score: Array, loss: Array) -> Validation | None:
        """Return the scores of all trials without each stretch of validation samples."""
        parts = self._stretches(name, measure, "validation")
        if not parts:
            return None
        of_mean = np.vectorize(OF_MEAN[self.readings.results.metric.of_mean], otypes=[float])
        sign = 1.0 if self.higher_is_better(measure) else -1.0
        without = sign * np.mean([of_mean(leave_groups_out(each)) for each in parts], axis=0)
        scores = np.where(np.isfinite(score), without, -np.inf)
        return Validation(scores, np.broadcast_to(loss, scores.shape))

    def _worst(self, measure: str) -> float:
        """Return the worst finite value of the study."""
        if measure not in self._worst_values:
            values = [self._scores(outcome, measure).test_score for outcome in self._ended]
            finite = [value for value in values if math.isfinite(value)]
            worst = min if self.higher_is_better(measure) else max
            self._worst_values[measure] = worst(finite, default=math.nan)
        return self._worst_values[measure]

    def _slopes(self, samples: Array) -> Array:
        """Return the derivative of each trial's score by the mean over its samples."""
        slope = SLOPE[self.readings.results.metric.of_mean]
        return np.array([[slope(float(row.mean()))] for row in samples])

    def _found(self, name: str, measure: str) -> list[PerturbedScores | None]:
        """Return the scores of a contender's trials; None of one that diverged."""
        outcomes = self.readings.outcomes(name)
        return [None if each is None else self._scores(each, measure) for each in outcomes]

    def _scores(self, outcome: Outcome, measure: str) -> PerturbedScores:
        if measure != CORRUPTED:
            return outcome.robustness[measure]
        every = [outcome.robustness[name] for name in self.corruptions]
        return PerturbedScores(
            fmean(each.validation_score for each in every),
            fmean(each.test_score for each in every),
            fmean(each.validation_loss for each in every),
            fmean(each.test_loss for each in every),
        )

    def _stretches(self, name: str, measure: str, part: str) -> list[Array]:
        """Return what stretches of samples add to each score that a measure is the mean of.

        Empty where that is not known.
        """
        measures = self.corruptions if measure == CORRUPTED else [measure]
        found = [_stacked(self._found(name, each), part) for each in measures]
        known = [each for each in found if each is not None]
        return known if len(known) == len(found) else []


def _stacked(found: Sequence[PerturbedScores | None], part: str) -> Array | None:
    """Return what stretches of samples add to each trial's score; None where it is not known.

    To one that is not finite, for which a constant stands, they add nothing.
    """

    def row(scores: PerturbedScores | None) -> Array | None:
        if scores is None or not math.isfinite(getattr(scores, f"{part}_score")):
            return None
        return unpack(getattr(scores, f"{part}_samples"))

    rows = [row(each) for each in found]
    sizes = {len(each) for each in rows if each is not None}
    if len(sizes) != 1 or 0 in sizes:
        return None
    nothing = np.zeros(sizes.pop())
    return np.array([nothing if each is None else each for each in rows])
