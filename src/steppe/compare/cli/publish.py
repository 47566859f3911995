"""Write a study's page, figures and tables, and print its result.

No command of its own: ``steppe compare`` and ``steppe report`` end with it.
"""

import webbrowser
from pathlib import Path

from rich.console import Console

from steppe._shared.pictures import write_png
from steppe.compare.records.choices import file_name
from steppe.compare.records.results import StudyResults
from steppe.compare.records.summary import summarise
from steppe.compare.records.verdicts import Readings
from steppe.compare.report import two_studies
from steppe.compare.report.exports import write_tables
from steppe.compare.report.page import write_page
from steppe.compare.report.pictures import (
    draw_budgets,
    draw_curves,
    draw_differences,
    draw_flatness,
)
from steppe.compare.report.robustness_picture import draw_robustness
from steppe.compare.report.tables import all_tables
from steppe.compare.report.terminal import print_report

#: The page's file, beside the study's own.
PAGE = "report.html"
#: The page of two studies.
PAGE_OF_TWO = "report-of-two.html"

_LONGEST_NAME = 50  # of a file, before its ending


def publish(
    console: Console,
    results: StudyResults,
    path: Path,
    *,
    readings: Readings | None = None,
    brief: bool = False,
    show: bool = False,
) -> None:
    """Write the page, print the result and where the page is, and open it if asked.

    In this order: whatever the output is connected to, the page is there. Where it cannot be
    written, the result is printed all the same.
    """
    readings = readings or Readings(results)
    try:
        write_page(results, path, readings)
    finally:
        print_report(console, results, brief=brief, readings=readings)
    _tell_page(console, path, show=show)


def publish_two(
    console: Console,
    both: tuple[StudyResults, StudyResults],
    path: Path,
    *,
    tables: Path | None = None,
    show: bool = False,
) -> None:
    """Do the same with two studies beside each other, and write their tables if asked.

    Raises
    ------
    ValueError
        They cannot be compared; the message says why.
    """
    comparison = two_studies.compare(*both)
    if tables is not None:
        write_tables(two_studies.tables(comparison), tables)
    try:
        two_studies.write_page(comparison, path)
    finally:
        two_studies.print_comparison(console, comparison)
    _tell_page(console, path, show=show)


def _tell_page(console: Console, path: Path, *, show: bool) -> None:
    console.print(f"\nPage: {path}", soft_wrap=True, highlight=False, markup=False)
    if show:
        webbrowser.open(path.resolve().as_uri())


def draw_figures(readings: Readings, directory: Path) -> None:
    """Write differences, budgets, learning curves, flatness and robustness as PNG files."""
    results = readings.results
    directory.mkdir(parents=True, exist_ok=True)
    # The task's name comes from a file, which may be somebody else's.
    task = file_name(results.task)[:_LONGEST_NAME]
    figures = {
        "differences": draw_differences(results, readings),
        "budgets": draw_budgets(results, readings),
        "curves": draw_curves(results),
        "flatness": draw_flatness(results),
        "robustness": draw_robustness(results, readings),
    }
    for name, figure in figures.items():
        if figure is not None:
            write_png(figure, directory / f"{task}-{name}.png")


def save_tables(readings: Readings, directory: Path) -> None:
    """Write every table as CSV and LaTeX into a directory."""
    write_tables(all_tables(readings, summarise(readings.results, readings)), directory)
