"""The command ``steppe report``."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from steppe._shared.cli_options import OUTPUT, Open, StudyName
from steppe._shared.console import make_console, refusals
from steppe._shared.interrupts import ending_at_once


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
        The study's URL, file or directory, or a JSON file that --json has written.
    baseline
        The optimizer that the others are compared with. Default: the study's first.
    brief
        Print only the leaderboard and the differences to the baseline.
    page
        HTML file for the page. Default: report.html beside the study's file.
    json
        Write all results to this JSON file, for other programs.
    figures
        Write learning curves, differences and flatness as PNG files into this directory.

    Examples
    --------
    Print a study, also while it runs:

        steppe report results/digits

    Publish it:

        steppe report results/digits --json digits.json --figures images
    """
    console = make_console()
    with refusals(), ending_at_once():
        # Imported here because torch takes two seconds: help and misspelt options do without.
        from steppe.compare.cli.publish import PAGE, draw_figures, publish
        from steppe.compare.execution.study_registry import read_study

    with refusals():
        results = read_study(storage, study)
        if json is not None:
            results.save(json)
        if figures is not None:
            draw_figures(results, figures, baseline)
        path = page or _beside(storage) / PAGE
        publish(console, results, path, baseline, brief=brief, show=show)


def _beside(storage: str) -> Path:
    """Return the directory of a study's file; the current one for a URL."""
    if "://" in storage:
        return Path()
    path = Path(storage)
    return path if path.is_dir() else path.parent
