"""Colours, dashes and markers of pictures, which colour-blind readers can tell apart too.

Pictures of all rooms and the pages' charts take the styles of their lines from it.
"""

from typing import NamedTuple

#: Okabe and Ito's colours without black (https://jfly.uni-koeln.de/color).
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
GREY = "#999999"

_ALL = (*COLOURS, "#000000", GREY)
# Neighbours differ in dash, so that both lines show where two coincide, as the lines of DualAdam
# and its control do.
_DASHES = ("--", "-", ":")
_MARKERS = ("o", "s", "^", "D", "v")


class LineStyle(NamedTuple):
    """Colour, dash and marker of one of several lines, as Matplotlib names them."""

    colour: str
    dash: str
    marker: str


def line_style(index: int) -> LineStyle:
    """Return the style of the line at an index from 0. The first 24 differ in colour or dash.

    Examples
    --------
    >>> line_style(1)
    LineStyle(colour='#E69F00', dash='-', marker='s')
    """
    return LineStyle(
        _ALL[index % len(_ALL)], _DASHES[index % len(_DASHES)], _MARKERS[index % len(_MARKERS)]
    )
