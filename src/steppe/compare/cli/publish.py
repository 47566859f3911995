"""Write a study's page and figures, and say where they are."""

import webbrowser
from pathlib import Path

from rich.console import Console

from steppe.compare.records.results import StudyResults
from steppe.compare.report.page import write_page
from steppe.compare.report.pictures import plot_curves, plot_differences, plot_flatness

#: The page's file, beside the study's own.
PAGE = "report.html"


def publish(
    console: Console,
    results: StudyResults,
    path: Path,
    baseline: str | None = None,
    *,
    show: bool = False,
) -> None:
    """Write the page, say where it is, and open it if asked."""
    write_page(results, path, baseline)
    console.print(f"\nPage: {path}", soft_wrap=True, highlight=False, markup=False)
    if show:
        webbrowser.open(path.resolve().as_uri())


def draw_figures(results: StudyResults, directory: Path, baseline: str | None) -> None:
    """Write learning curves, differences and flatness as PNG files into a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    plot_curves(results, directory / f"{results.task}-curves.png")
    plot_differences(results, directory / f"{results.task}-differences.png", baseline)
    plot_flatness(results, directory / f"{results.task}-flatness.png")
