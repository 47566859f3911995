"""The table at the end, and what it does and does not say."""

import math
from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from steppe.commands.tables import new_table
from steppe.commands.wording import many
from steppe.compare.controls import control_of
from steppe.compare.curvature import SAMPLES
from steppe.compare.study import Study
from steppe.compare.summary import Difference, Finished, Row, difference, summarise
from steppe.compare.wording import SAME, short, significant, verdict, with_interval

_INTERVALS = ("test\naccuracy %", "test\nloss")
_NUMBERS = (
    "train\nloss",
    "gap",
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
    console.print(_curvature(rows))
    for note in _notes(study, rows):
        console.print(note, highlight=False)
    if study.seeds == 1:
        console.print("\nOne seed has no interval: nothing can be said about differences.")
        return
    baseline, *others = (recipe.name for recipe in study.recipes)
    found = {name: difference(finished, name, baseline) for name in others}
    console.print()
    console.print(_differences(baseline, found))
    if any(verdict(each.accuracy) == SAME for each in found.values()):
        console.print(
            "Equal differences have no interval: accuracy comes in steps of one test sample, so "
            "they are no certainty."
        )
    for line in _control_reading(study, finished):
        console.print(line, highlight=False)
    console.print(
        "These intervals are not widened for looking at several optimizers; more seeds see smaller "
        "differences."
    )


def _table(study: Study, rows: list[Row]) -> Table:
    setup = study.setup
    table = new_table(
        f"{setup.task.name}: {many(study.seeds, 'seed')}, {many(setup.epochs, 'epoch')} "
        f"of {study.steps // setup.epochs} steps"
    )
    for heading in _INTERVALS:
        table.add_column(heading, justify="right", min_width=8)
    for heading in _NUMBERS:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        name = f"{row.name} †" if row.diverged else row.name
        if row.diverged == row.runs:
            measures = ["diverged", "–", "–", "–"]
        else:
            measures = [
                with_interval(row.accuracy, 2),
                with_interval(row.test_loss, 3),
                short(row.train_loss.mean),
                f"{row.gap.mean:.3f}",
            ]
        table.add_row(name, *measures, f"{row.step_ms:.2f}", f"{row.state_bytes:.1f}")
    return table


def _curvature(rows: list[Row]) -> Table:
    table = new_table("Curvature")
    for heading in ("sharpness", "λ_max", "trace", "λ_max(PH)"):
        table.add_column(heading, justify="right", min_width=8)
    table.add_column("threshold", justify="right", no_wrap=True)
    for row in rows:
        measured = (row.sharpness, row.largest, row.trace, row.preconditioned)
        cells = ["–"] * 4 if row.diverged == row.runs else map(significant, measured)
        table.add_row(row.name, *cells, short(row.threshold.mean))
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
        "loss. Curvature is that of the train loss at the end. Sharpness: its rise one SAM step of "
        f"0.05 away. λ_max, trace: the Hessian's, over at most {SAMPLES} samples. λ_max(PH): after "
        "the optimizer's preconditioner P; steps are stable below the threshold, at the last lr. "
        "All shrink with the train loss: compare optimizers that fit equally well."
    ]
    if any(recipe.switches or recipe.warmup for recipe in study.recipes):
        switched = round(1 / setup.switch_rate)
        notes.append(
            f"Switch and warm-up end after {switched} of {study.steps} steps "
            f"({switched / study.steps:.0%}; switch rate {setup.switch_rate:.2g}). The published "
            "8e-5 switches after 12 500 steps, 16 % of its 200-epoch CIFAR run."
        )
    notes += [note for row in rows for note in _row_notes(row)]
    done = {row.name: row.runs for row in rows}
    if sum(done.values()) < len(study.runs()):
        seeds = ", ".join(f"{recipe.name} {done.get(recipe.name, 0)}" for recipe in study.recipes)
        notes.append(f"Not finished; of {study.seeds} seeds so far: {seeds}.")
    return notes


def _row_notes(row: Row) -> list[str]:
    notes = []
    if row.diverged:
        notes.append(
            f"† {row.name}: {row.diverged} of {many(row.runs, 'run')} diverged (loss not finite) "
            "and is in no mean."
        )
    if row.diverged < row.runs and math.isnan(row.sharpness.mean):
        notes.append(f"{row.name} ended where derivatives are not finite: no curvature there.")
    return notes


def _differences(baseline: str, found: Mapping[str, Difference]) -> Table:
    table = new_table(f"Difference from {baseline}, seed by seed")
    for measure in ("test accuracy, points", "test loss"):
        table.add_column(measure, justify="right", min_width=8)
        table.add_column("")
    for name, each in found.items():
        table.add_row(
            name,
            with_interval(each.accuracy, 2, sign=True),
            verdict(each.accuracy),
            with_interval(each.test_loss, 3, sign=True),
            verdict(each.test_loss),
        )
    return table


def _control_reading(study: Study, finished: Finished) -> list[str]:
    lines = []
    for recipe in study.recipes:
        if not recipe.switches:
            continue
        control = control_of(recipe)
        found = difference(finished, recipe.name, control)
        lines.append(
            f"{recipe.name} against its control {control}: test accuracy "
            f"{with_interval(found.accuracy, 2, sign=True)} points, {verdict(found.accuracy)}; "
            f"test loss {with_interval(found.test_loss, 3, sign=True)}, {verdict(found.test_loss)}."
        )
    return lines
