"""What the ``plot`` methods of results share: axes, colours, and the choice of a scale."""

from typing import TYPE_CHECKING

from steppe._shared.array_types import Floats
from steppe._shared.palette import COLOURS
from steppe._shared.pictures import new_figure, style_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, RED = COLOURS[0], COLOURS[3]

# Ratio of the largest to the smallest loss.
_WIDE = 20.0


def axes_for(axes: "Axes | None", title: str) -> "Axes":
    """Return the axes to draw on, with a title; a new figure's where none are given.

    Raises
    ------
    ImportError
        Matplotlib is not installed; the message says how to install it.
    """
    if axes is None:
        figure = new_figure(None, (6.4, 4.2))
        # Imported here: without Matplotlib the line before says how to install it.
        from steppe._shared.shown_figures import ShownAxes

        axes = figure.add_subplot(axes_class=ShownAxes)
    style_axes(axes, title, grid=None)
    return axes


def needs_log_scale(losses: Floats) -> bool:
    """Whether losses are positive and range so widely that they need a logarithmic scale."""
    return bool(losses.size and losses.min() > 0 and spans_wide_range(losses.min(), losses.max()))


def spans_wide_range(low: float, high: float) -> bool:
    """Whether a linear scale from ``low`` to ``high`` would show nothing near the minimum."""
    return high > _WIDE * low
