"""Run a sweep, print where its optimizers ended, and write its files."""

import webbrowser
from pathlib import Path

from steppe._shared.console import make_console, refusals
from steppe._shared.progress import progress
from steppe.play.animation import animate
from steppe.play.page import write_page
from steppe.play.pictures import plot_losses, plot_paths
from steppe.play.report import report
from steppe.play.results import SweepResult
from steppe.play.sweep import Sweep

_PAGE = "play.html"


def run_and_report(sweep: Sweep, directory: Path, animation: str, *, show: bool) -> None:
    """Run a sweep with a bar on the terminal, print its table, and write its files.

    Parameters
    ----------
    sweep : Sweep
        What is run.
    directory : Path
        Where play.json, play.html and the pictures are written; it is made if it is missing.
        Paths are drawn of functions of two variables only.
    animation : str
        One of :data:`steppe.play.options.ANIMATION_FORMATS`.
    show : bool
        Whether to open the page in a browser.

    Raises
    ------
    SystemExit
        A file cannot be written.
    """
    with refusals():
        directory.mkdir(parents=True, exist_ok=True)
        with progress("Descents", len(sweep.recipes) * len(sweep.rates)) as advance:
            result = sweep.run(advance)
    console = make_console()
    report(console, result)
    with refusals():
        console.print()
        for path in _write(result, directory, animation):
            console.print(f"Written: {path}", soft_wrap=True, highlight=False, markup=False)
    if show:
        webbrowser.open((directory / _PAGE).resolve().as_uri())


def _write(result: SweepResult, directory: Path, animation: str) -> list[Path]:
    """Write play.json, play.html and the pictures; return where they are."""
    written = [directory / "play.json", directory / "losses.png", directory / _PAGE]
    result.save(written[0])
    plot_losses(result, written[1])
    write_page(result, written[2])
    if result.function.dimension > 2:
        return written
    plot_paths(result, directory / "paths.png")
    written.append(directory / "paths.png")
    if animation != "none":
        animate(result, directory / f"paths.{animation}")
        written.append(directory / f"paths.{animation}")
    return written
