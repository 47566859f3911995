"""Trials whose test result is far below what their validation result promises."""

import math
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from steppe.compare.records.best_of_k import Array
from steppe.compare.records.results import POOL

if TYPE_CHECKING:
    from steppe.compare.records.verdicts import Readings

# A test result this many standard errors below what validation promises is no chance.
_FAR_BELOW = 5.0
_MAD_TO_SIGMA = 1.4826


class BrokenPromises:
    """Counts a study's trials that validation has promised far too much of.

    Far below is five standard errors, of both sets of samples and of the scatter of all trials
    between the two. What is rare and not seen in validation is beyond what a verdict promises.

    Parameters
    ----------
    readings : Readings
        Those of a complete study.
    """

    def __init__(self, readings: "Readings") -> None:
        self._readings = readings

    def count(self, name: str) -> int:
        """Count those of a contender."""
        all_gaps = np.concatenate([gaps for gaps, _ in self._gaps.values()])
        if not len(all_gaps):
            return 0
        middle = np.median(all_gaps)
        scatter = _MAD_TO_SIGMA * np.median(np.abs(all_gaps - middle))
        gaps, errors = self._gaps[name]
        return int((gaps - middle < -_FAR_BELOW * np.hypot(scatter, errors)).sum())

    @cached_property
    def _gaps(self) -> dict[str, tuple[Array, Array]]:
        contenders = self._readings.results.contenders
        return {each.name: self._gaps_of(each.name) for each in contenders}

    def _gaps_of(self, name: str) -> tuple[Array, Array]:
        """Return how much better than in validation each trial is on the test set, with its error.

        Only of trials that did not diverge.
        """
        readings = self._readings
        reading = readings.results.plan.primary
        sign = 1.0 if readings.higher_is_better(reading) else -1.0
        gaps, errors = [], []
        for trial in readings.results.trials_of(name, POOL):
            if (outcome := trial.finite_outcome) is None:
                continue
            test, validation = readings.values(outcome, reading)
            if not (math.isfinite(test) and math.isfinite(validation)):
                continue
            samples = [readings.samples(outcome, part, reading) for part in ("test", "validation")]
            known = [each for each in samples if each is not None and len(each) > 1]
            errors.append(math.hypot(*(each.std(ddof=1) / math.sqrt(len(each)) for each in known)))
            gaps.append(sign * (test - validation))
        return np.array(gaps), np.array(errors)
