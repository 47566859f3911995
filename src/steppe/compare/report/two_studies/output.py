"""Two studies beside each other, in the terminal, as a page, and as tables."""

from pathlib import Path
from typing import Any

from rich.console import Console

from steppe._shared.files import write_text
from steppe._shared.messages import plural
from steppe._shared.page.parts import Chart, HtmlTable
from steppe._shared.page.render import render
from steppe._shared.page.styles import Style, styles_of
from steppe._shared.statistics import Interval
from steppe._shared.tables import print_text
from steppe.compare.report.exports import to_csv, to_latex
from steppe.compare.report.formatting import decimals, format_number, join_with_and
from steppe.compare.report.near_range import near_range, with_zero
from steppe.compare.report.page.comparisons import row_chart
from steppe.compare.report.page.traces import (
    beyond_beside,
    error_bars,
    near_and_all,
    optimizer_of_trace,
    plotly_text,
)
from steppe.compare.report.tables.cells import interval_cell, text_cell
from steppe.compare.report.terminal import title
from steppe.compare.report.two_studies.comparison import SharedContender, StudyComparison
from steppe.compare.report.units import change_label, reading_label

_NOTE = (
    "A is {ours}, B is {theirs}. Both are read at k = {budget} on test {reading}. The error "
    "between the studies is the root of the sum of their squared errors, as of independent ones."
)
_SAME_SEED = (
    "Both studies have study seed {seed}: where their plans agree, so do their settings, weights "
    "and data orders. They are not independent, and the intervals between them do not hold."
)


def tables(found: StudyComparison) -> dict[str, HtmlTable]:
    """Return the tables of two studies by their names, those that have rows."""
    made = {
        "changes": _changes(found),
        "levels": _levels(found),
        "plans": _plans(found),
    }
    return {name: table for name, table in made.items() if table.rows}


def _changes(found: StudyComparison) -> HtmlTable:
    """Return the differences from the common baseline, and the verdicts, of both studies."""
    label = change_label(found.ours, found.reading)
    columns = {
        "A": f"{label}, in the first study",
        "B": f"{label}, in the second study",
        "A − B": "the difference between the studies",
        "verdict of A": "on its own plan",
        "verdict of B": "on its own plan",
        "verdicts": "whether they contradict each other",
    }
    compared = [each for each in found.shared if each.our_change.mean == each.our_change.mean]
    digits = _digits(found)
    cells = [
        (
            each.name,
            [
                interval_cell(each.our_change, digits, sign=True),
                interval_cell(each.their_change, digits, sign=True),
                interval_cell(each.changes_apart, digits, sign=True),
                text_cell(each.our_verdict),
                text_cell(each.their_verdict),
                text_cell(_agreement(each)),
            ],
        )
        for each in compared
    ]
    return HtmlTable(f"{label}, minus {found.ours.results.baseline}’s", columns, cells)


def _agreement(each: SharedContender) -> str:
    if not each.both_decided:
        return ""
    return "contradict" if each.contradict else "no contradiction"


def _levels(found: StudyComparison) -> HtmlTable:
    """Return the expected results of the best of k in both studies."""
    columns = {
        "A": "in the first study",
        "B": "in the second study",
        "A − B": "the difference between the studies",
    }
    digits = _digits(found)
    cells = [
        (
            each.name,
            [
                interval_cell(each.ours, digits),
                interval_cell(each.theirs, digits),
                interval_cell(each.apart, digits, sign=True),
            ],
        )
        for each in found.shared
    ]
    label = reading_label(found.ours, found.reading)
    return HtmlTable(f"{label}, of the best of {found.budget} trials", columns, cells)


def _plans(found: StudyComparison) -> HtmlTable:
    columns = {"A": "in the first study", "B": "in the second study"}
    cells = [
        (name, [text_cell(ours), text_cell(theirs)])
        for name, (ours, theirs) in found.differences.items()
    ]
    return HtmlTable("What the studies differ in", columns, cells, first="what")


def _digits(found: StudyComparison) -> int:
    return decimals([each.ours.mean for each in found.shared], 4)


def sentences(found: StudyComparison) -> list[str]:
    """Say whether two studies agree."""
    contradicting = [each.name for each in found.shared if each.contradict]
    both = [each for each in found.shared if each.both_decided]
    if contradicting:
        first = f"The studies contradict each other on {join_with_and(contradicting)}."
    elif both:
        first = (
            f"No verdict of one study contradicts the other’s, on {plural(len(both), 'optimizer')}."
        )
    else:
        first = "The studies have given no verdicts that answer the same question."
    apart = [each.name for each in found.shared if _excludes_zero(_between(each))]
    second = (
        f"Beyond their errors they differ on {join_with_and(apart)}."
        if apart
        else "No optimizer’s results differ between them beyond the errors."
    )
    note = _NOTE.format(
        ours=found.ours.results.name,
        theirs=found.theirs.results.name,
        budget=found.budget,
        reading=found.ours.label(found.reading),
    )
    seed = found.ours.results.plan.study_seed
    dependent = [] if found.independent else [_SAME_SEED.format(seed=seed)]
    return [first, second, *dependent, note]


def _between(each: SharedContender) -> Interval:
    """Return the difference between the studies, of what the baseline is taken off if it can."""
    known = each.changes_apart.mean == each.changes_apart.mean
    return each.changes_apart if known else each.apart


def _excludes_zero(value: Interval) -> bool:
    return value.low > 0 or value.high < 0


def print_comparison(console: Console, found: StudyComparison) -> None:
    """Print two studies beside each other."""
    print_text(console, title(found.ours.results))
    for sentence in sentences(found):
        print_text(console, sentence)
    console.print()
    for table in tables(found).values():
        console.print(table.to_text())


def write_page(found: StudyComparison, path: Path) -> None:
    """Write :func:`page` to a file, atomically.

    Raises
    ------
    OSError
        It cannot be written.
    """
    write_text(path, page(found))


def page(found: StudyComparison) -> str:
    """Return two studies beside each other as one HTML document, which loads nothing."""
    made, drawn = tables(found), _charts(found)
    results = found.ours.results
    return render(
        __package__,
        drawn,
        title=f"{results.task}: two studies beside each other",
        subtitle=title(results),
        sentences=sentences(found),
        tables=made,
        exports={name: {"csv": to_csv(each), "tex": to_latex(each)} for name, each in made.items()},
        styles=styles_of(each.name for each in results.contenders),
        charts=drawn,
    )


def _charts(found: StudyComparison) -> list[Chart]:
    """Draw the differences from the baseline, or the results, a row for each study."""
    look = styles_of(each.name for each in found.ours.results.contenders)
    changes = any(each.our_change.mean == each.our_change.mean for each in found.shared)
    rows, of_row = {}, {}
    for each in found.shared:
        pair = (each.our_change, each.their_change) if changes else (each.ours, each.theirs)
        for study, value in zip("AB", pair, strict=True):
            if value.mean == value.mean:
                rows[f"{each.name}, {study}"] = value
                of_row[f"{each.name}, {study}"] = look[each.name]
    if not rows:
        return []
    near = near_range(rows, found.ours.higher_is_better(found.reading))
    digits = _digits(found)
    beyond = beyond_beside(
        with_zero(near) if changes else near,
        {row: value.mean for row, value in rows.items()},
        of_row,
        lambda value: format_number(value, digits, sign=changes),
    )
    label = (
        f"{change_label(found.ours, found.reading)}, minus {found.ours.results.baseline}’s"
        if changes
        else reading_label(found.ours, found.reading)
    )
    traces = [_row_trace(row, value, of_row[row]) for row, value in rows.items()]
    variants = near_and_all(with_zero(near) if changes else near, "xaxis", beyond)
    name = f"{label}, in both studies"
    return [row_chart("two-studies", name, plotly_text(label), traces, variants)]


def _row_trace(row: str, value: Interval, style: Style) -> dict[str, Any]:
    filling = "" if row.endswith("A") else "-open"
    return {
        **optimizer_of_trace(row),
        "x": [value.mean],
        "y": [plotly_text(row)],
        "mode": "markers",
        "marker": {"symbol": f"{style.marker}{filling}", "color": style.colour, "size": 9},
        "error_x": error_bars([value], style.colour),
        "hovertemplate": "%{x:.4g}",
    }
