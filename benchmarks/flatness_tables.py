"""The tables of docs/flatness.md on weights and inputs that change after training."""

from collections.abc import Sequence
from itertools import product

import numpy as np
from flatness_verdicts import (
    ABSMAX,
    CLEAN,
    COMPENSATED,
    COSTS,
    FAMILY,
    KURTOSIS,
    LEAST,
    NOISE,
    SEEDS,
    TASKS,
    Tested,
    best_trials,
    comparisons,
    interaction,
    studies_of,
    verdict,
)
from page_blocks import head, row, signed

from steppe._shared.statistics import Interval
from steppe.compare import RobustReadings

NOT_RUN = "not run"
# A column for each study seed.
COLUMNS = [f"seed {seed}" for seed in SEEDS]
RECIPES = ("adamw", "adamw+sam", "adamw+msam", "adamw+random", "adamcm", "adamcm+sam")
_COMPUTE = (("adamw+sam", "adamw+2epochs"), ("adamw+msam", "adamw+sam"))
_SETTINGS = ("lr", "rho", "priority_decay")
# Effects add up where the interval lies within so many points.
_ADDS_UP = 2.0


def summary_table() -> str:
    """Return what the studies of each task say together, by what chose the best of 4."""
    choices = {"tuned for clean accuracy": False, "tuned for the reading": True}
    titles = (f"{task}, {choice}" for task, choice in product(TASKS.values(), choices))
    lines = [head("contender", "reading", *titles)]
    columns = [_in_short(task, tuned=tuned) for task, tuned in product(TASKS, choices.values())]
    for name, reading in FAMILY:
        if reading != KURTOSIS:
            cells = (column.get((name, reading), NOT_RUN) for column in columns)
            lines.append(row(name, reading, *cells))
    return "\n".join(lines)


def recipe_table() -> str:
    """Return settings of the tenth of all trials that keep most, by validation data."""
    lines = [head("contender", "keeps most under", *TASKS.values())]
    for name, reading in product(RECIPES, (NOISE, LEAST)):
        found = (_best_settings(task, name, reading) for task in TASKS)
        lines.append(row(name, reading, *found))
    return "\n".join(lines)


def family_table(family: Sequence[tuple[str, str]], *, tuned: bool = False) -> str:
    """Return the comparisons of all studies, a row for each contender, reading and task."""
    lines = [head("contender", "reading", "task", *COLUMNS, "both seeds")]
    for task, title in TASKS.items():
        tests = [
            comparisons(study, family, tuned=tuned) if study else [] for study in studies_of(task)
        ]
        for place, (name, reading) in enumerate(family):
            own = [each[place] if each else None for each in tests]
            cells = [judged(each) for each in own]
            said = verdict([each.sign if each else None for each in own])
            shown = f"log {reading}" if reading == KURTOSIS else reading
            lines.append(row(name, shown, title, *cells, said))
    return "\n".join(lines)


def interaction_table() -> str:
    """Return whether the effects of critical momenta and of SAM add up."""
    lines = [head("reading", "task", *COLUMNS)]
    for reading in (NOISE, LEAST):
        for task, title in TASKS.items():
            cells = (
                _adds_up(interaction(study, reading)) if study else NOT_RUN
                for study in studies_of(task)
            )
            lines.append(row(reading, title, *cells))
    return "\n".join(lines)


def cost_table() -> str:
    """Return what each contender costs in clean accuracy, on the samples of the other readings."""
    lines = [head("contender", "task", *COLUMNS)]
    for name in COSTS:
        for task, title in TASKS.items():
            studies = studies_of(task)
            cells = (_clean_cost(study, name) if study else NOT_RUN for study in studies)
            lines.append(row(name, title, *cells))
    return "\n".join(lines)


def compute_table() -> str:
    """Return SAM beside what has as many gradients, and beside what has half of them."""
    lines = [head("difference", "reading", "task", *COLUMNS)]
    for (ours, theirs), reading, task in product(_COMPUTE, (NOISE, LEAST), TASKS):
        studies = studies_of(task)
        cells = (
            signed(study.change(ours, theirs, reading)) if study else NOT_RUN for study in studies
        )
        lines.append(row(f"{ours} minus {theirs}", reading, TASKS[task], *cells))
    return "\n".join(lines)


def value_table() -> str:
    """Return the readings of the main contenders themselves, chosen by clean validation data."""
    measures = (CLEAN, NOISE, ABSMAX, LEAST, COMPENSATED, KURTOSIS)
    lines = [head("task, seed", "contender", *measures)]
    for task, title in TASKS.items():
        for seed, study in zip(SEEDS, studies_of(task), strict=True):
            for name in ("adamw", *COSTS) if study else ():
                values = [study.expected(name, each).mean for each in measures] if study else []
                lines.append(row(f"{title}, {seed}", name, *(f"{x:.2f}" for x in values)))
    return "\n".join(lines)


def judged(found: Tested | None, digits: int = 2) -> str:
    """Return a difference with its interval and p, and what would have been found if it is not."""
    if found is None:
        return NOT_RUN
    p = "p < 0.001" if found.p < 0.001 else f"p {found.p:.3f}"
    least = "" if found.sign else f"; would find {found.detectable:.2g}"
    return f"{signed(found.difference, digits)}, {p}{least}"


def _in_short(task: str, *, tuned: bool) -> dict[tuple[str, str], str]:
    """Return the verdict on each comparison of the main family, with both differences."""
    family = [each for each in FAMILY if not tuned or each[1] != KURTOSIS]
    studies = studies_of(task)
    tests = [comparisons(study, family, tuned=tuned) for study in studies if study]
    if not tests:
        return {}
    missing = [None] * (len(studies) - len(tests))
    return {
        pair: f"{verdict([*(each.sign for each in own), *missing])}: "
        + ", ".join(f"{each.difference.mean:+.1f}".replace("-", "−") for each in own)
        for pair, own in zip(family, zip(*tests, strict=True), strict=True)
    }


def _best_settings(task: str, name: str, reading: str) -> str:
    """Return the quartiles of what the best trials of both studies were run with."""
    studies = [study for study in studies_of(task) if study]
    best = [trial.settings for each in studies for trial in best_trials(each, name, reading)]
    if not best:
        return NOT_RUN
    parts = []
    for key in (each for each in _SETTINGS if each in best[0]):
        low, high = np.quantile([float(each[key]) for each in best], (0.25, 0.75))
        parts.append(f"{key} {low:.2g}–{high:.2g}")
    return ", ".join(parts)


def _clean_cost(study: RobustReadings, name: str) -> str:
    return signed(study.change(name, "adamw", CLEAN))


def _adds_up(found: Interval) -> str:
    within = found.low > -_ADDS_UP and found.high < _ADDS_UP
    return f"{signed(found)}{', adds up' if within else ''}"
