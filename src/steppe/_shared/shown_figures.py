"""Figures and axes that show themselves where a notebook's cell ends with them.

Matplotlib's own do so only under ``%matplotlib inline``. Imported where something is drawn.
"""

import base64
import io

from matplotlib.axes import Axes
from matplotlib.figure import Figure


class ShownFigure(Figure):
    """A figure that a notebook shows."""

    def _repr_png_(self) -> bytes:
        return png_of(self)


class ShownAxes(Axes):
    """Axes whose figure a notebook shows."""

    def _repr_png_(self) -> bytes | None:
        return png_of(self.figure) if isinstance(self.figure, Figure) else None


def png_of(figure: Figure, dpi: int = 100) -> bytes:
    """Return a figure as PNG."""
    file = io.BytesIO()
    figure.savefig(file, dpi=dpi, format="png")
    return file.getvalue()


def image_of(drawn: Axes | Figure) -> str:
    """Return the picture of a figure, or of axes, as HTML that needs no file."""
    figure = drawn.figure if isinstance(drawn, Axes) else drawn
    assert isinstance(figure, Figure)
    text = base64.b64encode(png_of(figure)).decode()
    return f'<img alt="" src="data:image/png;base64,{text}">'
