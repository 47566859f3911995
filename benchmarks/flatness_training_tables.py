"""The tables of docs/flatness.md on what differs while networks train, or train on.

Noisy labels, the size of a batch, and a second task that makes a network forget the first one:
sections 3, 4 and 7 of docs/flatness-plan.md.
"""

from collections.abc import Mapping, Sequence

from flatness_tables import COLUMNS, NOT_RUN, all_judged, difference_cell, judged
from flatness_verdicts import (
    FORGETS,
    Tested,
    batch_study,
    change_between,
    forgetting_comparisons,
    forgetting_studies,
    interval_of,
    label_noise_study,
    own_verdicts,
    points_lost,
    primary_change,
    studies_of,
)
from page_blocks import head, row, signed

from steppe._shared.statistics import Interval
from steppe.compare import Pool, Readings, compare_pools, forgetting_pools

# Without noise, and with more and more of it.
NOISY_TASKS = {
    "digits": ("digits", "digits+noise20", "digits+noise40", "digits+noise60"),
    "FashionMNIST": ("fashion-mnist", "fashion-mnist+noise40"),
}
NOISY = (
    *("adamw+ema", "sgd-momentum", "dualadam", "adamcm"),
    *("adamw+sam", "adamw+msam", "adamcm+msam"),
)
# Added by the studies, without a test.
NOISY_CONTROLS = ("adam+warmup", "adamw+2epochs")
BATCH_READ = ("adamw+sam", "adamw+msam", "adamcm")
# What else may explain who forgets less, without a test: SAM's second gradient, a first phase of
# small steps, and that AdamCM's β1 is tuned.
_CONTROLS = (
    ("adamw+sam", "adamw+2epochs"),
    ("adam+warmup", "adamw"),
    ("dualadam", "adam+warmup"),
    ("adamcm", "adamw+beta1"),
)
# Losses differ in their third digit.
_DIGITS = 3


def label_noise_table(title: str) -> str:
    """Return each contender's difference from AdamW by the share of labels that are noise."""
    tasks = NOISY_TASKS[title]
    shares = (f"{_share(task)} % noise" if _share(task) else "no noise" for task in tasks)
    lines = [head("contender", *shares)]
    studies = [label_noise_study(task) for task in tasks]
    lines.append(row("adamw itself", *(_primary(study) if study else NOT_RUN for study in studies)))
    found = [_by_name(study) for study in studies]
    for name in NOISY:
        lines.append(row(name, *(judged(each.get(name)) for each in found)))
    for name in NOISY_CONTROLS:
        own = (primary_change(study, name) if study else None for study in studies)
        lines.append(row(name, *map(difference_cell, own)))
    return "\n".join(lines)


def label_noise_growth() -> str:
    """Return how much SAM's difference on digits grows from no noise to the most."""
    first, *_, last = NOISY_TASKS["digits"]
    found = [_by_name(label_noise_study(task)).get("adamw+sam") for task in (last, first)]
    return _changed(found)


def noisy_studies() -> dict[str, dict[int, Readings]]:
    """Return the studies of tasks that have all of theirs, by the share of noise in percent."""
    found = {
        title: {_share(task): label_noise_study(task) for task in tasks}
        for title, tasks in NOISY_TASKS.items()
    }
    return {
        title: {share: study for share, study in studies.items() if study}
        for title, studies in found.items()
        if all(studies.values())
    }


def batch_table() -> str:
    """Return differences from AdamW with batches of 1 024 and of 64, and how much they differ."""
    lines = [head("contender", "batches of 1 024", "batches of 64", "change")]
    large = _by_name(batch_study())
    small = studies_of("fashion-mnist")[0]
    small_readings = _by_name(small.readings if small else None)
    for name in BATCH_READ:
        both = [found.get(name) for found in (large, small_readings)]
        cells = (difference_cell(each and each.difference) for each in both)
        lines.append(row(name, *cells, _changed(both)))
    return "\n".join(lines)


def forgetting_table() -> str:
    """Return the test loss on the first task where the second one is learnt, minus AdamW's."""
    lost = [f"points lost, {each}" for each in COLUMNS]
    lines = [head("contender", *COLUMNS, "both seeds", *lost)]
    studies = forgetting_studies()
    tests = [forgetting_comparisons(study) if study else [] for study in studies]
    points = [points_lost(study) if study else {} for study in studies]
    for place, name in enumerate(FORGETS):
        own = [each[place] if each else None for each in tests]
        cells = (difference_cell(each.get(name)) for each in points)
        lines.append(row(name, *all_judged(own, _DIGITS), *cells))
    pools = [
        (forgetting_pools(study), study.results.plan.budget) if study else None for study in studies
    ]
    for ours, theirs in _CONTROLS:
        found = (_forgets_beyond(*each, ours, theirs) if each else None for each in pools)
        cells = (difference_cell(each, _DIGITS) for each in found)
        lines.append(row(f"{ours} minus {theirs}", *cells, "", "", ""))
    return "\n".join(lines)


def _share(task: str) -> int:
    """Return how many percent of a task's labels are noise."""
    return int(task.partition("+noise")[2] or 0)


def _primary(study: Readings) -> str:
    plan = study.results.plan
    return f"{study.expected(study.results.baseline, plan.primary, plan.budget).mean:.2f}"


def _by_name(study: Readings | None) -> dict[str, Tested]:
    return {each.contender: each for each in own_verdicts(study)} if study else {}


def _changed(found: Sequence[Tested | None]) -> str:
    known = [each.difference for each in found if each is not None]
    return signed(change_between(*known)) if len(known) == len(found) else NOT_RUN


def _forgets_beyond(pools: Mapping[str, Pool], k: int, ours: str, theirs: str) -> Interval:
    return interval_of(compare_pools(pools[ours], pools[theirs], k, swaps=0))
