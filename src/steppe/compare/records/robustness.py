"""What the best of k trials keeps of its score once its weights or inputs are changed.

What chooses the best is clean validation data or, of the same trials and without a second training,
the robust measure itself. All of it is exploratory, unless it was declared elsewhere before.
"""

import math
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import NamedTuple

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
from steppe.compare.records.of_mean import SLOPE
from steppe.compare.records.outcomes import Outcome, PerturbedScores
from steppe.compare.records.packed_numbers import unpack
from steppe.compare.records.sample_groups import leave_groups_out
from steppe.compare.records.verdicts import Readings

#: The results without any perturbation, on the same samples.
CLEAN = "clean"
#: The mean over all corruptions of inputs.
CORRUPTED = "corrupted inputs"

# Numbers of a model of which less is better, whatever the metric is.
_LESS_IS_BETTER = ("kurtosis", "outliers", "calibration error", "Brier score")
_WEIGHTS = ("bits", "weight noise")


class MeasureName(NamedTuple):
    """A measure's name in parts, as "3 bits absmax" is ("bits absmax", 3).

    ``amount`` is None where the name has none.
    """

    group: str
    amount: float | None


def split_name(measure: str) -> MeasureName:
    """Return what is measured, and how much of it.

    Examples
    --------
    >>> split_name("3 bits absmax"), split_name("blur 5").group, split_name("kurtosis").amount
    (MeasureName(group='bits absmax', amount=3.0), 'blur', None)
    """
    words = measure.split()
    for place in (0, -1):
        try:
            amount = float(words[place])
        except ValueError:
            continue
        return MeasureName(" ".join(words[1:] if place == 0 else words[:-1]), amount)
    return MeasureName(measure, None)


class RobustReadings:
    """Readings of a finished study whose runs were measured with perturbations.

    Parameters
    ----------
    readings : Readings
        Those of the study.
    """

    def __init__(self, readings: Readings) -> None:
        self._readings = readings
        self._pools: dict[tuple[str, str, bool], Pool] = {}
        self._differences: dict[tuple[str, str, str, bool], Difference] = {}

    @property
    def measures(self) -> list[str]:
        """What was measured of all runs, in the order of the measurement; empty if nothing was."""
        if not self._readings.results.complete:
            return []
        named = [
            list(outcome.robustness)
            for contender in self._readings.results.contenders
            for outcome in self._readings.outcomes(contender.name)
            if outcome is not None
        ]
        known = [name for name in (named[0] if named else []) if all(name in n for n in named)]
        return [*known, *([CORRUPTED] if len(corruptions(known)) > 1 else [])]

    def higher_is_better(self, measure: str) -> bool:
        """Whether more of a measure is better; of one of the user's own it is."""
        if measure in _LESS_IS_BETTER:
            return False
        return not self.is_score(measure) or self._readings.results.metric.higher_is_better

    def is_score(self, measure: str) -> bool:
        """Whether a measure is the task's metric after a perturbation."""
        if measure == CORRUPTED:
            return True
        return any(
            math.isfinite(found.test_loss)
            for contender in self._readings.results.contenders
            for outcome in self._readings.outcomes(contender.name)
            if outcome is not None and (found := outcome.robustness.get(measure))
        )

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

    def pool(self, name: str, measure: str, *, tuned: bool = False) -> Pool:
        """Return a contender's trials: what chooses them, and the measure's test value of each.

        A trial that diverged has the worst value of all trials of the study.
        """
        key = name, measure, tuned
        if key not in self._pools:
            self._pools[key] = self._make_pool(*key)
        return self._pools[key]

    @property
    def budget(self) -> int:
        """The declared budget k."""
        return self._readings.results.plan.budget

    def _make_pool(self, name: str, measure: str, tuned: bool) -> Pool:
        found = [_scores(outcome, measure) for outcome in self._readings.outcomes(name)]
        factor = self._readings.results.metric.factor if self.is_score(measure) else 1.0
        worst = self._worst(measure)

        def of_each(field: str, otherwise: float) -> Array:
            values = [math.nan if each is None else getattr(each, field) for each in found]
            return np.array([value if math.isfinite(value) else otherwise for value in values])

        test = factor * of_each("test_score", worst)
        samples = _stretches(found, "test_samples", worst)
        if samples is not None:
            samples = factor * self._slopes(samples) * samples
        clean = self._readings.pool(name, "score")
        if not tuned:
            return Pool(clean.score, clean.loss, test, samples, clean.validation)
        sign = 1.0 if self.higher_is_better(measure) else -1.0
        score = sign * of_each("validation_score", -sign * math.inf)
        loss = of_each("validation_loss", math.inf)
        return Pool(score, loss, test, samples, _validation(found, sign, loss))

    def _worst(self, measure: str) -> float:
        """Return the worst finite value of the study."""
        values = [
            found.test_score
            for contender in self._readings.results.contenders
            for outcome in self._readings.outcomes(contender.name)
            if (found := _scores(outcome, measure)) and math.isfinite(found.test_score)
        ]
        return (min if self.higher_is_better(measure) else max)(values, default=math.nan)

    def _slopes(self, samples: Array) -> Array:
        """Return the derivative of each trial's score by the mean over its samples."""
        slope = SLOPE[self._readings.results.metric.of_mean]
        return np.array([[slope(float(row.mean()))] for row in samples])


def _validation(
    found: Sequence[PerturbedScores | None], sign: float, loss: Array
) -> Validation | None:
    """Return the scores of all trials without each stretch of validation samples."""
    values = _stretches(found, "validation_samples", 0.0)
    if values is None:
        return None
    # Only their order counts, which is that of the means.
    lost = np.array([each is None for each in found])
    scores = np.where(lost, -np.inf, sign * leave_groups_out(values))
    return Validation(scores, np.broadcast_to(loss, scores.shape))


def corruptions(measures: Iterable[str]) -> list[str]:
    """Return the measures that are corruptions of inputs."""
    return [
        name
        for name in measures
        if (found := split_name(name)).amount is not None and not found.group.startswith(_WEIGHTS)
    ]


def _scores(outcome: Outcome | None, measure: str) -> PerturbedScores | None:
    if outcome is None or measure != CORRUPTED:
        return None if outcome is None else outcome.robustness.get(measure)
    every = [outcome.robustness[name] for name in corruptions(outcome.robustness)]
    return PerturbedScores(
        fmean(each.validation_score for each in every),
        fmean(each.test_score for each in every),
        fmean(each.validation_loss for each in every),
        fmean(each.test_loss for each in every),
    )


def _stretches(
    found: Sequence[PerturbedScores | None], field: str, otherwise: float
) -> Array | None:
    """Return what stretches of samples add to each trial's score; None where it is not known."""
    rows = [None if each is None else unpack(getattr(each, field)) for each in found]
    known = [row for row in rows if row is not None]
    sizes = {len(row) for row in known}
    if len(sizes) != 1 or 0 in sizes:
        return None
    constant = np.full(len(known[0]), otherwise)
    return np.array([constant if row is None else np.nan_to_num(row) for row in rows])
