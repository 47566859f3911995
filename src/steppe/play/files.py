"""Write all files of a sweep: numbers, pictures, animation and page."""

from pathlib import Path

from steppe.play.animation import animate
from steppe.play.page import write_page
from steppe.play.pictures import plot_losses, plot_paths
from steppe.play.results import SweepResult

#: The page's file in the directory of a sweep.
PAGE = "play.html"


def write_files(result: SweepResult, directory: Path, animation: str) -> list[Path]:
    """Write play.json, play.html and the pictures; return the paths of what was written.

    Parameters
    ----------
    result : SweepResult
        What the files show. Paths are drawn of functions of two variables only.
    directory : Path
        Where they are written.
    animation : str
        One of :data:`steppe.play.options.ANIMATION_FORMATS`.
    """
    written = [directory / "play.json", directory / "losses.png", directory / PAGE]
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
