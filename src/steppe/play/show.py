"""Run a sweep, write its files, and print where its optimizers ended, for ``steppe play``."""

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
    """Run a sweep with a bar on the terminal, write its files, and print its table.

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
    with refusals():
        _show(result, directory, animation)
    if show:
        webbrowser.open((directory / _PAGE).resolve().as_uri())


def _show(result: SweepResult, directory: Path, animation: str) -> None:
    """Write all files, then print; if one cannot be written, the table is printed all the same."""
    console = make_console()
    try:
        written = _write(result, directory, animation)
    finally:
        report(console, result)
    console.print()
    for path in written:
        console.print(f"Written: {path}", soft_wrap=True, highlight=False, markup=False)


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
