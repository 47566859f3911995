"""The look of all pictures: figures, axes, and how they are written.

The commands, :mod:`steppe.landscape`'s ``plot`` methods and ``figures/`` draw with it.
"""

from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal

from steppe._shared.extras import install_command
from steppe._shared.files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150


def new_figure(title: str | None, size: tuple[float, float]) -> "Figure":
    """Begin a figure, ``size`` inches wide and high, that lays itself out.

    Raises
    ------
    ImportError
        Matplotlib is not installed; the message says how to install it.
    """
    try:
        from steppe._shared.shown_figures import ShownFigure
    except ImportError as missing:
        raise ImportError(f"drawing needs Matplotlib: {install_command('matplotlib')}") from missing
    figure = ShownFigure(figsize=size, layout="constrained")
    if title is not None:
        figure.suptitle(title, x=0.01, ha="left", fontsize=13)
    return figure


def style_axes(axes: "Axes", title: str, grid: Literal["x", "y", "both"] | None = "y") -> None:
    """Give a panel its title, no frame above and to the right, and a faint grid or none."""
    axes.set_title(title, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    if grid is not None:
        axes.grid(axis=grid, alpha=0.25)


def write_png(figure: "Figure", path: Path) -> None:
    """Write a figure as PNG, whole or not at all.

    Raises
    ------
    OSError
        It cannot be written.
    """
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        # A dollar in a name begins no formula.
        text.set_parse_math(False)

    def write(file: IO[bytes]) -> None:
        figure.savefig(file, dpi=DPI, format="png")

    write_whole(path, write)
