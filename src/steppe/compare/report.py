"""The table at the end, and what it does and does not say."""

from rich import box
from rich.console import Console
from rich.table import Table

from steppe.compare.optimizers import CONTROL
from steppe.compare.statistics import Interval
from steppe.compare.study import Study
from steppe.compare.summary import Finished, Row, difference, summarise

_INTERVALS = ("test\naccuracy %", "test\nloss")
_NUMBERS = (
    "train\nloss",
    "gap",
    "sharp-\nness",
    "ms per\nstep",
    "state\nB/param",
)


def report(console: Console, study: Study, finished: Finished) -> None:
    """Print the table, the differences from the baseline, and how to read them.

    Parameters
    ----------
    console : rich.console.Console
        Where to.
    study : Study
        What was asked for.
    finished : mapping
        What has finished of it, by optimizer, then by seed.
    """
    rows = summarise(finished)
    if not rows:
        console.print("No run has finished.")
        return
    console.print(_table(study, rows))
    for note in _notes(study, rows):
        console.print(note, highlight=False)
    if study.seeds == 1:
        console.print("\nOne seed has no interval: nothing can be said about differences.")
        return
    console.print()
    console.print(_differences(study, finished))
    for line in _control_reading(study, finished):
        console.print(line, highlight=False)
    console.print(
        "These intervals are not widened for looking at several optimizers; more seeds see smaller "
        "differences."
    )


def _table(study: Study, rows: list[Row]) -> Table:
    setup = study.setup
    table = _new_table(
        f"{setup.task.name}: {_many(study.seeds, 'seed')}, {_many(setup.epochs, 'epoch')} "
        f"of {study.steps // setup.epochs} steps"
    )
    for heading in _INTERVALS:
        table.add_column(heading, justify="right", min_width=8)
    for heading in _NUMBERS:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        name = f"{row.name} †" if row.diverged else row.name
        if row.diverged == row.runs:
            measures = ["diverged", "–", "–", "–", "–"]
        else:
            measures = [
                with_interval(row.accuracy, 2),
                with_interval(row.test_loss, 3),
                f"{row.train_loss.mean:.2g}",
                f"{row.gap.mean:.3f}",
                f"{row.sharpness.mean:.2g}",
            ]
        table.add_row(name, *measures, f"{row.step_ms:.2f}", f"{row.state_bytes:.1f}")
    return table


def _new_table(title: str) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
        title=title,
        title_justify="left",
    )
    # On a narrow terminal names and intervals take two lines, so that no number is cut.
    table.add_column("optimizer", overflow="fold")
    return table


def _notes(study: Study, rows: list[Row]) -> list[str]:
    setup = study.setup
    rates = {
        recipe.arguments(setup.lr, setup.switch_rate).get("lr", "none") for recipe in study.recipes
    }
    lr = f"lr {rates.pop()} for all" if len(rates) == 1 else "each optimizer at its own default lr"
    samples = len(study.data.test_targets)
    notes = [
        f"± is the 95 % t-interval over seeds, on one test set of {samples} samples (one is "
        f"{100 / samples:.2g} points). Weight decay 0, {lr}, nothing tuned. Gap is test − train "
        "loss. Sharpness is the rise in train loss one SAM step of 0.05 away; it shrinks with the "
        "train loss, so compare it between optimizers that fit equally well."
    ]
    if any(recipe.switches or recipe.warmup for recipe in study.recipes):
        switched = round(1 / setup.switch_rate)
        notes.append(
            f"Switch and warm-up end after {switched} of {study.steps} steps "
            f"({switched / study.steps:.0%}; switch rate {setup.switch_rate:.2g}). The published "
            "8e-5 switches after 12 500 steps, 16 % of its 200-epoch CIFAR run."
        )
    for row in rows:
        if row.diverged:
            notes.append(
                f"† {row.name}: {row.diverged} of {_many(row.runs, 'run')} diverged (loss not "
                "finite) and is in no mean."
            )
    done = {row.name: row.runs for row in rows}
    if sum(done.values()) < len(study.runs()):
        seeds = ", ".join(f"{recipe.name} {done.get(recipe.name, 0)}" for recipe in study.recipes)
        notes.append(f"Not finished; of {study.seeds} seeds so far: {seeds}.")
    return notes


def _differences(study: Study, finished: Finished) -> Table:
    baseline = study.recipes[0].name
    table = _new_table(f"Difference from {baseline}, seed by seed")
    for measure in ("test accuracy, points", "test loss"):
        table.add_column(measure, justify="right", min_width=8)
        table.add_column("")
    for recipe in study.recipes[1:]:
        found = difference(finished, recipe.name, baseline)
        table.add_row(
            recipe.name,
            with_interval(found.accuracy, 2, sign=True),
            verdict(found.accuracy),
            with_interval(found.test_loss, 3, sign=True),
            verdict(found.test_loss),
        )
    return table


def _control_reading(study: Study, finished: Finished) -> list[str]:
    lines = []
    for recipe in study.recipes:
        if not recipe.switches:
            continue
        found = difference(finished, recipe.name, CONTROL)
        lines.append(
            f"{recipe.name} against its control {CONTROL}: test accuracy "
            f"{with_interval(found.accuracy, 2, sign=True)} points, {verdict(found.accuracy)}; "
            f"test loss {with_interval(found.test_loss, 3, sign=True)}, {verdict(found.test_loss)}."
        )
    return lines


def with_interval(value: Interval, digits: int, *, sign: bool = False) -> str:
    """Write a mean with its half-width; ``–`` where there is none.

    Examples
    --------
    >>> with_interval(Interval(97.5, 0.456), 2)
    '97.50 ± 0.46'
    >>> with_interval(Interval(-0.5, float("nan")), 1, sign=True)
    '−0.5 ± –'
    """
    if value.mean != value.mean:
        return "–"
    mean = f"{value.mean:{'+' if sign else ''}.{digits}f}".replace("-", "−")
    width = "–" if value.half_width != value.half_width else f"{value.half_width:.{digits}f}"
    return f"{mean} ± {width}"


def verdict(found: Interval) -> str:
    """Say in words whether a difference was seen.

    Examples
    --------
    >>> verdict(Interval(0.4, 0.5)), verdict(Interval(-0.4, 0.1))
    ('no difference seen', 'lower')
    """
    if found.half_width != found.half_width and found.mean != 0:
        return "no interval"
    if not found.excludes_zero:
        return "no difference seen"
    return "higher" if found.mean > 0 else "lower"


def _many(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"
