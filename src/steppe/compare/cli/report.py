"""The command ``steppe report``."""

import webbrowser
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from steppe._shared.cli_options import Open, StudyName
from steppe._shared.console import make_console, refusals
from steppe.compare.execution.stored_studies import read_study
from steppe.compare.records.results import StudyResults
from steppe.compare.report.page import write_page
from steppe.compare.report.pictures import plot_curves, plot_differences, plot_flatness
from steppe.compare.report.terminal import print_report

PAGE = "report.html"


def report(
    storage: Annotated[
        str,
        typer.Argument(
            metavar="STORAGE",
            help="A study's URL, file or directory, or a JSON file that --json has written.",
        ),
    ],
    study: StudyName = None,
    baseline: Annotated[
        str | None, typer.Option(help="What the others are compared with. Default: the first.")
    ] = None,
    brief: Annotated[
        bool, typer.Option("--brief", help="Print the leaderboard and the differences only.")
    ] = False,
    page: Annotated[
        Path | None, typer.Option(help="The page. Default: report.html beside the study's file.")
    ] = None,
    json: Annotated[
        Path | None, typer.Option(help="Write the whole study to this file, for others to read.")
    ] = None,
    figures: Annotated[
        Path | None, typer.Option(help="Write the key figures as PNG into this directory.")
    ] = None,
    show: Open = False,
) -> None:
    """Print what a study has come to, and write it as one self-contained page."""
    console = make_console()
    with refusals():
        results = read_study(storage, study)
        print_report(console, results, baseline, brief=brief)
        if json is not None:
            results.save(json)
        if figures is not None:
            _draw(results, figures, baseline)
        publish(console, results, page or _beside(storage) / PAGE, baseline, show=show)


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


def _beside(storage: str) -> Path:
    """Return the directory of a study's file; the current one for a URL."""
    if "://" in storage:
        return Path()
    path = Path(storage)
    return path if path.is_dir() else path.parent


def _draw(results: StudyResults, directory: Path, baseline: str | None) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    plot_curves(results, directory / f"{results.task}-curves.png")
    plot_differences(results, directory / f"{results.task}-differences.png", baseline)
    plot_flatness(results, directory / f"{results.task}-flatness.png")
