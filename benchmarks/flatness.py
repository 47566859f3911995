"""Judge what docs/flatness-plan.md declares of weights and inputs that change after training.

``python benchmarks/flatness.py`` reads the studies ``docs/results/flatness-TASK-SEED.json.gz`` and
writes the tables of ``docs/flatness.md`` and its pictures. It computes nothing but what the plan
says; a study that is not there was not run. Takes a minute.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from flatness_pictures import draw_differences, draw_fronts
from page_blocks import with_block

from steppe._shared.files import write_text
from steppe._shared.pictures import write_png
from steppe._shared.statistics import LEVEL, Interval, holm
from steppe.compare import (
    Difference,
    Readings,
    RobustReadings,
    compare_pools,
    contrast,
    load,
)

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "docs" / "results", ROOT / "docs" / "flatness.md"
IMAGES = ROOT / "docs" / "images"
TASKS = {"digits": "digits", "fashion-mnist": "FashionMNIST"}
SEEDS = (0, 1)

NOISE, LEAST = "weight noise 0.5", "2 bits least error"
ABSMAX, COMPENSATED = "2 bits absmax", "2 bits compensated"
KURTOSIS, CLEAN, CORRUPTED = "kurtosis", "clean", "corrupted inputs"

# The families of the plan: contenders and readings.
_OF_SAM = ("adamw+sam", "adamw+msam", "adamw+random", "adamcm+sam", "adamcm+msam")
FAMILY = (
    *(("adamcm", reading) for reading in (KURTOSIS, ABSMAX, LEAST, COMPENSATED)),
    *((name, reading) for name in _OF_SAM for reading in (NOISE, LEAST)),
)
CORRUPTIONS = tuple((name, CORRUPTED) for name in ("adamcm", *_OF_SAM))
COSTS = ("adamw+ema", "adamw+2epochs", "adamcm", *_OF_SAM)
# Effects add up where the interval lies within so many points.
_ADDS_UP = 2.0


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


def file_of(task: str, seed: int) -> Path:
    """Return the file of a study."""
    return RESULTS / f"flatness-{task}-{seed}.json.gz"


@cache
def readings_of(path: Path) -> RobustReadings | None:
    """Read a finished study; None if there is none."""
    if not path.is_file():
        return None
    results = load(path).results
    return RobustReadings(Readings(results)) if results.complete else None


def studies_of(task: str) -> list[RobustReadings | None]:
    """Return a task's studies, one for each seed; None stands for one that is not there."""
    return [readings_of(file_of(task, seed)) for seed in SEEDS]


def comparisons(
    readings: RobustReadings, family: Sequence[tuple[str, str]], *, tuned: bool = False
) -> list[Tested]:
    """Test a family of comparisons with AdamW, corrected after Holm."""
    found = [_difference(readings, name, each, tuned=tuned) for name, each in family]
    corrected = holm([each.p for each in found])
    return [
        Tested(*pair, Interval(each.estimate, each.low, each.high), p, each.detectable(len(family)))
        for pair, each, p in zip(family, found, corrected, strict=True)
    ]


def _difference(readings: RobustReadings, name: str, reading: str, *, tuned: bool) -> Difference:
    if reading != KURTOSIS:
        return readings.difference(name, "adamw", reading, tuned=tuned)
    # Its logarithm, as the plan says: of a few trials it is a hundred times the others'.
    ours, theirs = (
        replace(pool, test=np.log(pool.test))
        for pool in (readings.pool(each, reading, tuned=tuned) for each in (name, "adamw"))
    )
    return compare_pools(ours, theirs, readings.budget)


def interaction(readings: RobustReadings, reading: str) -> Interval:
    """Return (adamcm+sam − adamcm) − (adamw+sam − adamw)."""
    signs = {"adamcm+sam": 1.0, "adamcm": -1.0, "adamw+sam": -1.0, "adamw": 1.0}
    pools = [(readings.pool(name, reading), sign) for name, sign in signs.items()]
    return contrast(pools, readings.budget)


def verdict(signs: Sequence[int | None]) -> str:
    """Return what the studies of one task say together; None stands for one that is not there."""
    if None in signs:
        return "not run"
    if len(set(signs)) == 1 and signs[0]:
        return "more" if signs[0] == 1 else "less"
    return "no difference seen" if not any(signs) else "not replicated"


def family_table(family: Sequence[tuple[str, str]], *, tuned: bool = False) -> str:
    """Return the comparisons of all studies, a row for each contender, reading and task."""
    lines = [_head("contender", "reading", "task", *_columns(), "both seeds")]
    for task, title in TASKS.items():
        tests = [
            comparisons(study, family, tuned=tuned) if study else [] for study in studies_of(task)
        ]
        for place, (name, reading) in enumerate(family):
            own = [each[place] if each else None for each in tests]
            cells = [_cell(each) for each in own]
            said = verdict([each.sign if each else None for each in own])
            shown = f"log {reading}" if reading == KURTOSIS else reading
            lines.append(_row(name, shown, title, *cells, said))
    return "\n".join(lines)


def interaction_table() -> str:
    """Return whether the effects of critical momenta and of SAM add up."""
    lines = [_head("reading", "task", *_columns())]
    for reading in (NOISE, LEAST):
        for task, title in TASKS.items():
            cells = (
                _adds_up(interaction(study, reading)) if study else "not run"
                for study in studies_of(task)
            )
            lines.append(_row(reading, title, *cells))
    return "\n".join(lines)


def cost_table() -> str:
    """Return what each contender costs in clean accuracy, on the samples of the other readings."""
    lines = [_head("contender", "task", *_columns())]
    for name in COSTS:
        for task, title in TASKS.items():
            studies = studies_of(task)
            cells = (_clean_cost(study, name) if study else "not run" for study in studies)
            lines.append(_row(name, title, *cells))
    return "\n".join(lines)


def value_table() -> str:
    """Return the readings of the main contenders themselves, chosen by clean validation data."""
    measures = (CLEAN, NOISE, ABSMAX, LEAST, COMPENSATED, KURTOSIS)
    lines = [_head("task, seed", "contender", *measures)]
    for task, title in TASKS.items():
        for seed, study in zip(SEEDS, studies_of(task), strict=True):
            for name in ("adamw", *COSTS) if study else ():
                values = [study.expected(name, each).mean for each in measures] if study else []
                lines.append(_row(f"{title}, {seed}", name, *(f"{x:.2f}" for x in values)))
    return "\n".join(lines)


def rewritten(page: str) -> str:
    """Return the page with its tables as the files have them."""
    tables = {
        "clean": family_table(FAMILY),
        "tuned": family_table([each for each in FAMILY if each[1] != KURTOSIS], tuned=True),
        "interaction": interaction_table(),
        "costs": cost_table(),
        "corruptions": family_table(CORRUPTIONS),
        "values": value_table(),
    }
    for part, table in tables.items():
        page = with_block(page, "flatness", table, part)
    return page


def main() -> None:
    """Write the page's tables and its pictures."""
    write_text(PAGE, rewritten(PAGE.read_text()))
    studies = dict(_complete())
    if studies:
        tests = {title: comparisons(each, FAMILY) for title, each in studies.items()}
        write_png(draw_differences(tests), IMAGES / "flatness-differences.png")
        write_png(draw_fronts(studies, (NOISE, LEAST)), IMAGES / "flatness-fronts.png")


def _complete() -> Iterator[tuple[str, RobustReadings]]:
    for task, title in TASKS.items():
        for seed, study in zip(SEEDS, studies_of(task), strict=True):
            if study is not None:
                yield f"{title}, seed {seed}", study


def _columns() -> Iterable[str]:
    return (f"seed {seed}" for seed in SEEDS)


def _cell(found: Tested | None) -> str:
    if found is None:
        return "not run"
    p = "p < 0.001" if found.p < 0.001 else f"p {found.p:.3f}"
    least = "" if found.sign else f"; would find {found.detectable:.2g}"
    return f"{_written(found.difference)}, {p}{least}"


def _clean_cost(study: RobustReadings, name: str) -> str:
    found = study.difference(name, "adamw", CLEAN)
    return _written(Interval(found.estimate, found.low, found.high))


def _adds_up(found: Interval) -> str:
    within = found.low > -_ADDS_UP and found.high < _ADDS_UP
    return f"{_written(found)}{', adds up' if within else ''}"


def _written(value: Interval) -> str:
    text = f"{value.mean:+.2f} [{value.low:+.2f}, {value.high:+.2f}]"
    return text.replace("-", "−")


def _head(*columns: str) -> str:
    return f"{_row(*columns)}\n{_row(*['---'] * len(columns))}"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
