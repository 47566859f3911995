"""The command ``steppe report``."""

import re
import webbrowser
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from steppe._shared.cli_options import OUTPUT, Open, StudyName
from steppe._shared.console import make_console, refusals
from steppe.compare.execution.stored_studies import read_study
from steppe.compare.records.results import StudyResults
from steppe.compare.report.page import write_page
from steppe.compare.report.pictures import plot_curves, plot_differences, plot_flatness
from steppe.compare.report.terminal import print_report

PAGE = "report.html"

_LONGEST_NAME = 50  # of a file, before its ending


def report(
    storage: str,
    /,
    *,
    study: StudyName = None,
    baseline: Annotated[str | None, Parameter(metavar="NAME")] = None,
    brief: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    page: Annotated[Path | None, OUTPUT, Parameter(metavar="FILE")] = None,
    json: Annotated[Path | None, OUTPUT, Parameter(metavar="FILE")] = None,
    figures: Annotated[Path | None, OUTPUT, Parameter(metavar="DIR")] = None,
    show: Open = False,
) -> None:
    """Print a study's results, and write them as one self-contained page.

    Parameters
    ----------
    storage
        A study's URL, file or directory, or a JSON file that --json has written.
    baseline
        The optimizer that the others are compared with. Default: the study's first.
    brief
        Print the leaderboard and the differences only.
    page
        File of the page. Default: report.html beside the study's file.
    json
        Write the whole study to this file, for other programs.
    figures
        Write the main figures as PNG into this directory.

    Examples
    --------
    Print a study, also while it runs:

        steppe report results/digits

    Publish it:

        steppe report results/digits --json digits.json --figures images
    """
    console = make_console()
    with refusals():
        results = read_study(storage, study)
        if json is not None:
            results.save(json)
        if figures is not None:
            _draw(results, figures, baseline)
        path = page or _beside(storage) / PAGE
        publish(console, results, path, baseline, brief=brief, show=show)


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


def _beside(storage: str) -> Path:
    """Return the directory of a study's file; the current one for a URL."""
    if "://" in storage:
        return Path()
    path = Path(storage)
    return path if path.is_dir() else path.parent


def _draw(results: StudyResults, directory: Path, baseline: str | None) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    # The task's name comes from a file, which may be somebody else's.
    task = re.sub(r"[^\w.-]", "_", results.task)[:_LONGEST_NAME]
    plot_curves(results, directory / f"{task}-curves.png")
    plot_differences(results, directory / f"{task}-differences.png", baseline)
    plot_flatness(results, directory / f"{task}-flatness.png")
