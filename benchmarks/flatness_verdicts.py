"""Judge the families of comparisons that docs/flatness-plan.md declares.

A family is a study's list of contenders and readings, each minus AdamW, corrected after Holm. A
study that is not in ``docs/results`` was not run.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np

from steppe._shared.statistics import LEVEL, Interval, holm
from steppe.compare import (
    POOL,
    Difference,
    Readings,
    RobustReadings,
    Trial,
    compare_pools,
    contrast,
    forgetting_at_common_loss,
    forgetting_pools,
    load,
)

RESULTS = Path(__file__).parents[1] / "docs" / "results"
TASKS = {"digits": "digits", "fashion-mnist": "FashionMNIST"}
SEEDS = (0, 1)

NOISE, LEAST = "weight noise 0.5", "2 bits least error"
ABSMAX, COMPENSATED = "2 bits absmax", "2 bits compensated"
KURTOSIS, CLEAN, CORRUPTED = "kurtosis", "clean", "corrupted inputs"
CALIBRATION = "calibration error"
FORGOTTEN = "test loss on the first task"

# The families of the plan: contenders and readings.
OF_SAM = ("adamw+sam", "adamw+msam", "adamw+random", "adamcm+sam", "adamcm+msam")
FAMILY = (
    *(("adamcm", reading) for reading in (KURTOSIS, ABSMAX, LEAST, COMPENSATED)),
    *((name, reading) for name in OF_SAM for reading in (NOISE, LEAST)),
)
# Kurtosis chooses nothing.
TUNED_FAMILY = tuple(each for each in FAMILY if each[1] != KURTOSIS)
CORRUPTIONS = tuple((name, CORRUPTED) for name in ("adamcm", *OF_SAM))
COSTS = ("adamw+ema", "adamw+2epochs", "adamcm", *OF_SAM)
CANDIDATE = "adamcm+2epochs+msam"
EQUAL_COMPUTE = tuple(
    (CANDIDATE, other) for other in ("adamw+sam", "adamw+2epochs+ema", "adam+warmup+2epochs")
)
FRESH_SEEDS = (2, 3)
FORGETS = ("adamw+ema", "adamw+sam", "adamw+msam", "adamw+random", "adamcm", "dualadam")


class Tested(NamedTuple):
    """A contender minus AdamW on one reading of one study.

    Attributes
    ----------
    contender, reading : str
        What was compared.
    difference : Interval
        With its 95 % interval.
    p : float
        Corrected after Holm for its family.
    detectable : float
        The smallest difference that the study would have found in 80 % of cases.
    """

    contender: str
    reading: str
    difference: Interval
    p: float
    detectable: float

    @property
    def sign(self) -> int:
        """1 or −1 if the difference is seen, else 0."""
        if not self.p < LEVEL:
            return 0
        return 1 if self.difference.mean > 0 else -1


@cache
def readings_of(path: Path) -> Readings | None:
    """Read a finished study; None if there is none."""
    if not path.is_file():
        return None
    results = load(path).results
    return Readings(results) if results.complete else None


@cache
def robust_readings_of(path: Path) -> RobustReadings | None:
    """Read a finished study with what was measured after perturbations; None if there is none."""
    readings = readings_of(path)
    return None if readings is None else RobustReadings(readings)


def studies_of(task: str) -> list[RobustReadings | None]:
    """Return the studies of sections 1 and 2, one for each seed; None for one that is not there."""
    return [robust_readings_of(RESULTS / f"flatness-{task}-{seed}.json.gz") for seed in SEEDS]


def label_noise_study(task: str) -> Readings | None:
    """Return a study of section 3, by its task's full name."""
    return readings_of(RESULTS / f"label-noise-{task}.json.gz")


def batch_study() -> Readings | None:
    """Return the study of section 4."""
    return readings_of(RESULTS / "batch-size-fashion-mnist+batch1024.json.gz")


def forgetting_studies() -> list[Readings | None]:
    """Return the studies of section 7, one for each seed."""
    return [readings_of(_forgetting_file(seed)) for seed in SEEDS]


def third_task_studies() -> list[RobustReadings | None]:
    """Return the readings of section 1 in the studies of section 7."""
    return [robust_readings_of(_forgetting_file(seed)) for seed in SEEDS]


def _forgetting_file(seed: int) -> Path:
    return RESULTS / f"forgetting-mnist-5k-{seed}.json.gz"


def equal_compute_studies() -> list[RobustReadings | None]:
    """Return the studies of section 8, one for each fresh seed."""
    name = "equal-compute-fashion-mnist-{}.json.gz"
    return [robust_readings_of(RESULTS / name.format(seed)) for seed in FRESH_SEEDS]


@cache
def comparisons(
    readings: RobustReadings, family: tuple[tuple[str, str], ...], *, tuned: bool = False
) -> list[Tested]:
    """Test a family of comparisons with AdamW, corrected after Holm; tables and pictures ask."""
    found = [_difference(readings, name, each, tuned=tuned) for name, each in family]
    return _tested(family, found)


def own_verdicts(readings: Readings) -> list[Tested]:
    """Return a study's own verdicts on its primary reading."""
    study = readings.results
    reading, k = study.plan.primary, study.plan.budget
    found = [readings.difference(name, "adamw", reading, k) for name in study.plan.family]
    return _tested([(name, readings.label(reading)) for name in study.plan.family], found)


def primary_change(readings: Readings, name: str) -> Interval:
    """Return a contender minus AdamW on a study's primary reading, without a test."""
    plan = readings.results.plan
    return interval_of(readings.difference(name, "adamw", plan.primary, plan.budget))


def equal_compute_comparisons(readings: RobustReadings) -> list[Tested]:
    """Test what section 8 declares; the candidate is the contender of all."""
    found = [readings.difference(*pair, NOISE) for pair in EQUAL_COMPUTE]
    return _tested([(ours, NOISE) for ours, _ in EQUAL_COMPUTE], found)


def forgetting_comparisons(readings: Readings) -> list[Tested]:
    """Test what is forgotten at the common loss on the second task."""
    pools, k = forgetting_pools(readings), readings.results.plan.budget
    found = [compare_pools(pools[name], pools["adamw"], k) for name in FORGETS]
    return _tested([(name, FORGOTTEN) for name in FORGETS], found)


def points_lost(readings: Readings) -> dict[str, Interval]:
    """Return the score lost since before fine-tuning at the common loss, minus AdamW's."""
    return {
        each.name: interval_of(each.lost_difference)
        for each in forgetting_at_common_loss(readings)
        if each.lost_difference is not None
    }


def change_between(difference: Interval, other: Interval) -> Interval:
    """Return ``difference − other`` of two studies that know nothing of each other."""
    half = math.hypot(difference.high - difference.low, other.high - other.low) / 2
    mean = difference.mean - other.mean
    return Interval(mean, mean - half, mean + half)


def mean_of_studies(values: Sequence[Interval]) -> Interval:
    """Return the mean of what studies say that know nothing of each other."""
    mean = fmean(each.mean for each in values)
    half = math.hypot(*(each.high - each.low for each in values)) / 2 / len(values)
    return Interval(mean, mean - half, mean + half)


def best_trials(readings: RobustReadings, name: str, reading: str) -> list[Trial]:
    """Return the tenth of a contender's trials that keep most of the reading on validation data."""
    trials = readings.readings.results.trials_of(name, POOL)
    order = np.argsort(-readings.pool(name, reading, tuned=True).score, kind="stable")
    return [trials[place] for place in order[: len(trials) // 10]]


def interaction(readings: RobustReadings, reading: str) -> Interval:
    """Return (adamcm+sam − adamcm) − (adamw+sam − adamw)."""
    signs = {"adamcm+sam": 1.0, "adamcm": -1.0, "adamw+sam": -1.0, "adamw": 1.0}
    pools = [(readings.pool(name, reading), sign) for name, sign in signs.items()]
    return contrast(pools, readings.budget)


def verdict(signs: Sequence[int | None]) -> str:
    """Return what the studies of one task say together; None stands for one that is not there."""
    known = [sign for sign in signs if sign is not None]
    if not known:
        return "not run"
    seen = {1: "more", 0: "not seen", -1: "less"}[known[0]]
    if len(known) < len(signs):
        return f"one study, {seen}"
    if len(set(known)) > 1:
        return "not replicated"
    return seen if known[0] else "no difference seen"


def _tested(family: Sequence[tuple[str, str]], found: Sequence[Difference]) -> list[Tested]:
    corrected = holm([each.p for each in found])
    return [
        Tested(*pair, interval_of(each), p, each.detectable(len(family)))
        for pair, each, p in zip(family, found, corrected, strict=True)
    ]


def interval_of(found: Difference) -> Interval:
    """Return a difference's 95 % interval."""
    return Interval(found.estimate, found.low, found.high)


def _difference(readings: RobustReadings, name: str, reading: str, *, tuned: bool) -> Difference:
    if reading != KURTOSIS:
        return readings.difference(name, "adamw", reading, tuned=tuned)
    # Its logarithm, as the plan says: of a few trials it is a hundred times the others'.
    ours, theirs = (
        replace(pool, test=np.log(pool.test))
        for pool in (readings.pool(each, reading, tuned=tuned) for each in (name, "adamw"))
    )
    return compare_pools(ours, theirs, readings.budget)
