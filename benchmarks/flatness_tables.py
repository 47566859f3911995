"""The tables of docs/flatness.md on weights and inputs that change after training."""

from collections.abc import Sequence

from flatness_verdicts import (
    ABSMAX,
    CLEAN,
    COMPENSATED,
    COSTS,
    KURTOSIS,
    LEAST,
    NOISE,
    SEEDS,
    TASKS,
    Tested,
    comparisons,
    interaction,
    interval_of,
    studies_of,
    verdict,
)
from page_blocks import head, row, signed

from steppe._shared.statistics import Interval
from steppe.compare import RobustReadings

NOT_RUN = "not run"
# A column for each study seed.
COLUMNS = [f"seed {seed}" for seed in SEEDS]
# Effects add up where the interval lies within so many points.
_ADDS_UP = 2.0


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


def _clean_cost(study: RobustReadings, name: str) -> str:
    found = study.difference(name, "adamw", CLEAN)
    return signed(interval_of(found))


def _adds_up(found: Interval) -> str:
    within = found.low > -_ADDS_UP and found.high < _ADDS_UP
    return f"{signed(found)}{', adds up' if within else ''}"
