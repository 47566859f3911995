"""A study's result in the terminal: sentences, tables, and footnotes that say how to read them."""

from collections.abc import Sequence

from rich.console import Console

from steppe._shared.messages import plural
from steppe._shared.page.parts import HtmlTable
from steppe._shared.tables import print_text
from steppe.compare.records.results import StudyResults
from steppe.compare.records.summary import OptimizerSummary, summarise
from steppe.compare.records.verdicts import Readings
from steppe.compare.report.footnotes import footnotes
from steppe.compare.report.headline import headline
from steppe.compare.report.tables import all_tables
from steppe.compare.report.tables.robustness import not_in_a_terminal

# Everything that stands before it decides, or says what to use.
_EXPLORATORY = ("differences", "controls", "gaps", "metrics", "forgetting")


def print_report(
    console: Console,
    results: StudyResults,
    *,
    brief: bool = False,
    readings: Readings | None = None,
) -> None:
    """Print a study's result, its tables and footnotes; of an unfinished one, how far it is.

    Parameters
    ----------
    console : rich.console.Console
        Where to; everything fits from 40 columns on.
    results : StudyResults
        A study, finished or not.
    brief : bool, default False
        Only the sentences and the first table.
    readings : Readings, optional
        Those of the study, if they are at hand.
    """
    readings = readings or Readings(results)
    rows = summarise(results, readings)
    tables = all_tables(readings, rows)
    print_text(console, title(results))
    said = headline(readings, rows)
    for sentence in (*said.findings, *said.plan):
        print_text(console, sentence)
    console.print()
    if "leaderboard" not in tables or brief:
        for name in ("progress", "leaderboard"):
            if name in tables:
                console.print(tables[name].to_text())
    else:
        _print_tables(console, readings, tables)
    if not brief:
        _print_notes(console, readings, rows)


def _print_tables(console: Console, readings: Readings, tables: dict[str, HtmlTable]) -> None:
    reading = readings.results.plan.primary
    budgets = "budgets" if reading == "score" else "budgets-loss"
    for name in ("leaderboard", budgets, "curvature", "recommended"):
        if name in tables:
            # The page has room for the search spaces.
            console.print(tables[name].to_text(without={"searched"}))
    print_text(console, "Exploratory: no verdicts, and p is not corrected.\n")
    for name in _EXPLORATORY:
        if name in tables:
            console.print(tables[name].to_text())
    for name in ("robustness", "robustness-tuned"):
        if name in tables:
            console.print(tables[name].to_text(without=not_in_a_terminal(tables[name])))


def _print_notes(console: Console, readings: Readings, rows: Sequence[OptimizerSummary]) -> None:
    results = readings.results
    for note in footnotes(readings, rows):
        print_text(console, note)
    about = [results.author, results.note]
    if any(about):
        print_text(console, ": ".join(filter(None, about)))


def title(results: StudyResults) -> str:
    """Return what a study trains, and for how long.

    Examples
    --------
    ``"digits, mlp: 12 epochs of 34 steps"``
    """
    setup = results.setup
    if stream := setup.get("stream"):
        passes = setup["epochs"] // len(stream)
        each = "seen once" if passes == 1 else f"seen {passes} times"
        steps = plural(passes * sum(stream), "step")
        length = f"{plural(len(stream), 'task')} {each}, {steps} in all"
    else:
        length = f"{plural(setup['epochs'], 'epoch')} of {plural(setup['steps_per_epoch'], 'step')}"
    return f"{results.task}, {setup['model']}: {length}"
