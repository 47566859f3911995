"""Write a study's page and figures, and print its tables."""

import re
import webbrowser
from pathlib import Path

from rich.console import Console

from steppe.compare.records.results import StudyResults
from steppe.compare.report.page import write_page
from steppe.compare.report.pictures import plot_curves, plot_differences, plot_flatness
from steppe.compare.report.terminal import print_report

#: The page's file, beside the study's own.
PAGE = "report.html"

_LONGEST_NAME = 50  # of a file, before its ending


def publish(
    console: Console,
    results: StudyResults,
    path: Path,
    baseline: str | None = None,
    *,
    brief: bool = False,
    show: bool = False,
) -> None:
    """Write the page, print the tables and where the page is, and open it if asked.

    In this order: whatever the output is connected to, the page is there. Where it cannot be
    written, the tables are printed all the same.
    """
    try:
        write_page(results, path, baseline)
    finally:
        print_report(console, results, baseline, brief=brief)
    console.print(f"\nPage: {path}", soft_wrap=True, highlight=False, markup=False)
    if show:
        webbrowser.open(path.resolve().as_uri())


def draw_figures(results: StudyResults, directory: Path, baseline: str | None) -> None:
    """Write learning curves, differences and flatness as PNG files into a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    # The task's name comes from a file, which may be somebody else's.
    task = re.sub(r"[^\w.-]", "_", results.task)[:_LONGEST_NAME]
    plot_curves(results, directory / f"{task}-curves.png")
    plot_differences(results, directory / f"{task}-differences.png", baseline)
    plot_flatness(results, directory / f"{task}-flatness.png")
