"""The tables of docs/flatness.md on weights and inputs that change after training."""

from collections.abc import Sequence
from itertools import product

import numpy as np
from flatness_verdicts import (
    ABSMAX,
    CALIBRATION,
    CLEAN,
    COMPENSATED,
    CORRUPTED,
    COSTS,
    EQUAL_COMPUTE,
    FAMILY,
    FRESH_SEEDS,
    KURTOSIS,
    LEAST,
    NOISE,
    OF_SAM,
    SEEDS,
    TASKS,
    TUNED_FAMILY,
    Tested,
    best_trials,
    comparisons,
    equal_compute_comparisons,
    equal_compute_studies,
    interaction,
    studies_of,
    third_task_studies,
    verdict,
)
from page_blocks import head, p_value, row, signed

from steppe._shared.statistics import Interval
from steppe.compare import RobustReadings

NOT_RUN = "not run"
# A column for each study seed.
COLUMNS = [f"seed {seed}" for seed in SEEDS]
RECIPES = ("adamw", *OF_SAM[:3], "adamcm", *OF_SAM[3:])
_COMPUTE = {
    ("adamw+2epochs", "adamw"): (NOISE, LEAST),
    ("adam+warmup", "adamw"): (CLEAN, NOISE, LEAST),
    ("adamcm", "adamw"): (NOISE,),
    ("adamw+sam", "adamw+2epochs"): (CLEAN, NOISE, LEAST),
    ("adamw+msam", "adamw+sam"): (CLEAN, NOISE, LEAST),
    ("adamw+random", "adamw+sam"): (CLEAN, NOISE, LEAST),
    ("adamcm+msam", "adamw+sam"): (CLEAN, NOISE, LEAST),
    ("adamw+sam", "adam+warmup"): (CLEAN, NOISE, LEAST),
    ("adamcm+msam", "adam+warmup"): (CLEAN, NOISE, LEAST),
}
_SETTINGS = ("lr", "rho", "priority_decay")
_MILD = (
    *("weight noise 0.1", "weight noise 0.3"),
    *("4 bits least error", "3 bits least error", CALIBRATION),
)
# AdamW with SAM's compute, and with what costs nothing.
_FREE = ("adamw+2epochs", "adam+warmup")
_THIRD_TASK = (CLEAN, NOISE, ABSMAX, LEAST, CORRUPTED)
# Effects add up where the interval lies within so many points.
_ADDS_UP = 2.0


def summary_table() -> str:
    """Return what the studies of each task say together, by what chose the best of 4."""
    choices = {"tuned for clean accuracy": False, "tuned for the reading": True}
    titles = (f"{task}, {choice}" for task, choice in product(TASKS.values(), choices))
    lines = [head("contender", "reading", *titles)]
    columns = [_in_short(task, tuned=tuned) for task, tuned in product(TASKS, choices.values())]
    for pair in TUNED_FAMILY:
        lines.append(row(*pair, *(column.get(pair, NOT_RUN) for column in columns)))
    return "\n".join(lines)


def recipe_table() -> str:
    """Return settings of the tenth of all trials that keep most, by validation data."""
    lines = [head("contender", "keeps most under", *TASKS.values())]
    for name, reading in product(RECIPES, (NOISE, LEAST)):
        found = (_best_settings(task, name, reading) for task in TASKS)
        lines.append(row(name, reading, *found))
    return "\n".join(lines)


def family_table(family: tuple[tuple[str, str], ...], *, tuned: bool = False) -> str:
    """Return the comparisons of all studies, a row for each contender, reading and task."""
    lines = [head("contender", "reading", "task", *COLUMNS, "both seeds")]
    for task, title in TASKS.items():
        tests = [
            comparisons(study, family, tuned=tuned) if study else [] for study in studies_of(task)
        ]
        for place, (name, reading) in enumerate(family):
            shown = f"log {reading}" if reading == KURTOSIS else reading
            own = [each[place] if each else None for each in tests]
            lines.append(row(name, shown, title, *all_judged(own)))
    return "\n".join(lines)


def interaction_table() -> str:
    """Return whether the effects of critical momenta and of SAM add up."""
    lines = [head("reading", "task", *COLUMNS)]
    for reading, task in product((NOISE, LEAST), TASKS):
        found = (interaction(study, reading) if study else None for study in studies_of(task))
        lines.append(row(reading, TASKS[task], *map(_adds_up, found)))
    return "\n".join(lines)


def cost_table() -> str:
    """Return what each contender costs in clean accuracy, on the samples of the other readings."""
    lines = [head("contender", "task", *COLUMNS)]
    for name, task in product(COSTS, TASKS):
        lines.append(row(name, TASKS[task], *_changes(studies_of(task), name, "adamw", CLEAN)))
    return "\n".join(lines)


def compute_table() -> str:
    """Return SAM beside what has as many gradients, and beside what has half of them."""
    lines = [head("difference", "reading", "task", *COLUMNS)]
    for (ours, theirs), readings in _COMPUTE.items():
        for reading, task in product(readings, TASKS):
            cells = _changes(studies_of(task), ours, theirs, reading)
            lines.append(row(f"{ours} minus {theirs}", reading, TASKS[task], *cells))
    return "\n".join(lines)


def equal_compute_table() -> str:
    """Return the candidate minus what has as many gradients, on seeds that did not choose it."""
    lines = [head("minus", "reading", *(f"seed {seed}" for seed in FRESH_SEEDS), "both seeds")]
    studies = equal_compute_studies()
    tests = [equal_compute_comparisons(study) if study else [] for study in studies]
    for place, (ours, theirs) in enumerate(EQUAL_COMPUTE):
        own = [each[place] if each else None for each in tests]
        lines.append(row(theirs, NOISE, *all_judged(own)))
        for reading in (CLEAN, LEAST, CORRUPTED):
            lines.append(row(theirs, reading, *_changes(studies, ours, theirs, reading), ""))
    return "\n".join(lines)


def mild_table() -> str:
    """Return AdamW where little is changed, and others minus it; * if both studies exclude 0."""
    lines = [head("contender", "task", *_MILD)]
    for task, title in TASKS.items():
        for line in _both_lines(studies_of(task), (*_FREE, "adamcm", *OF_SAM), _MILD):
            lines.append(row(line[0], title, *line[1:]))
    return "\n".join(lines)


def third_task_table() -> str:
    """Return the same for the networks that are to forget, before they do."""
    lines = [head("contender", *_THIRD_TASK)]
    studies, names = third_task_studies(), (*_FREE, *OF_SAM[:3], "adamcm", "dualadam")
    for line in _both_lines(studies, names, _THIRD_TASK):
        lines.append(row(*line))
    known = [study for study in studies if study]
    for other in _FREE:
        cells = (_both_changes(known, "adamw+sam", each, other) for each in _THIRD_TASK)
        lines.append(row(f"adamw+sam minus {other}", *cells))
    return "\n".join(lines)


def value_table() -> str:
    """Return the readings of the main contenders themselves, chosen by clean validation data."""
    measures = (CLEAN, NOISE, ABSMAX, LEAST, COMPENSATED, KURTOSIS)
    lines = [head("task, seed", "contender", *measures)]
    for task, title in TASKS.items():
        for seed, study in zip(SEEDS, studies_of(task), strict=True):
            if study is None:
                continue
            for name in ("adamw", *COSTS):
                values = [study.expected(name, each).mean for each in measures]
                lines.append(row(f"{title}, {seed}", name, *(f"{x:.2f}" for x in values)))
    return "\n".join(lines)


def judged(found: Tested | None, digits: int = 2) -> str:
    """Return a difference with its interval and p, and what would have been found if it is not."""
    if found is None:
        return NOT_RUN
    least = "" if found.sign else f"; would find {found.detectable:.2g}"
    return f"{signed(found.difference, digits)}, {p_value(found.p)}{least}"


def all_judged(own: Sequence[Tested | None], digits: int = 2) -> list[str]:
    """Return what each study says of one comparison, and what they say together."""
    signs = [each.sign if each else None for each in own]
    return [*(judged(each, digits) for each in own), verdict(signs)]


def difference_cell(found: Interval | None, digits: int = 2) -> str:
    """Return a difference with its interval, without a test."""
    return NOT_RUN if found is None else signed(found, digits)


def _in_short(task: str, *, tuned: bool) -> dict[tuple[str, str], str]:
    """Return the verdict on each comparison of the main family, with both differences."""
    family = TUNED_FAMILY if tuned else FAMILY
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


def _changes(
    studies: Sequence[RobustReadings | None], ours: str, theirs: str, reading: str
) -> list[str]:
    """Return one contender minus another in each study."""
    found = (study.change(ours, theirs, reading) if study else None for study in studies)
    return [difference_cell(each) for each in found]


def _both_lines(
    studies: Sequence[RobustReadings | None], names: Sequence[str], readings: Sequence[str]
) -> list[list[str]]:
    """Return a line of AdamW's own readings, and one of each contender's differences from it."""
    known = [study for study in studies if study]
    return [
        ["adamw itself", *(_both_values(known, reading) for reading in readings)],
        *([name, *(_both_changes(known, name, reading) for reading in readings)] for name in names),
    ]


def _both_values(studies: Sequence[RobustReadings], reading: str) -> str:
    """Return what AdamW reaches in each study."""
    found = (study.expected("adamw", reading) for study in studies)
    return ", ".join(f"{_points(each.mean, reading):.1f}" for each in found) or NOT_RUN


def _both_changes(
    studies: Sequence[RobustReadings], name: str, reading: str, other: str = "adamw"
) -> str:
    """Return a contender minus another in each study, and a mark if they agree."""
    found = [study.change(name, other, reading) for study in studies]
    sides = {(each.low > 0) - (each.high < 0) for each in found}
    agree = len(found) == len(SEEDS) and sides in ({1}, {-1})
    shown = (f"{_points(each.mean, reading):+z.1f}".replace("-", "−") for each in found)
    return (", ".join(shown) or NOT_RUN) + "*" * agree


def _points(value: float, reading: str) -> float:
    """Return points; the calibration error is a share of 1."""
    return 100 * value if reading == CALIBRATION else value


def _adds_up(found: Interval | None) -> str:
    within = found is not None and -_ADDS_UP < found.low <= found.high < _ADDS_UP
    return f"{difference_cell(found)}{', adds up' if within else ''}"
