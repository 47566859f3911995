"""Colour, dash and marker of each optimizer in the charts and tables of a page."""

from collections.abc import Iterable
from dataclasses import dataclass

from steppe._shared.palette import COLOURS, GREY

#: The page's text colour: black on a light page, white on a dark one.
INK = "currentColor"
_COLOURS = (*COLOURS, INK, GREY)
# Lengths of strokes and gaps. There are 8 colours, 6 dashes and 7 markers, so that no two of the
# first 168 optimizers look the same.
_DASHES = ("none", "8,4", "2,3", "9,3,2,3", "16,4", "4,2")
# Plotly's name of a marker, and the same shape as an SVG path for the legend.
_MARKERS = {
    "circle": "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0z",
    "square": "M-4,-4h8v8h-8z",
    "diamond": "M0,-5.5L5.5,0L0,5.5L-5.5,0z",
    "triangle-up": "M0,-5L5,4h-10z",
    "cross": "M-2,-5h4v3h3v4h-3v3h-4v-3h-3v-4h3z",
    "triangle-down": "M0,5L5,-4h-10z",
    "hourglass": "M-5,-5h10L-5,5h10z",
}


@dataclass(frozen=True)
class Style:
    """How an optimizer is drawn in all charts of a page.

    Attributes
    ----------
    colour : str
        A CSS colour.
    dash : str
        Lengths of strokes and gaps, as SVG's ``stroke-dasharray`` and Plotly's ``dash`` take them.
    marker : str
        Plotly's name of a marker.
    """

    colour: str
    dash: str
    marker: str

    @property
    def path(self) -> str:
        """The marker as an SVG path about the origin."""
        return _MARKERS[self.marker]


def styles_of(names: Iterable[str]) -> dict[str, Style]:
    """Return a style for each optimizer's name, by its position.

    Examples
    --------
    >>> styles_of(["adamw", "dualadam"])["dualadam"]
    Style(colour='#E69F00', dash='8,4', marker='square')
    """
    markers = tuple(_MARKERS)
    return {
        name: Style(
            _COLOURS[index % len(_COLOURS)],
            _DASHES[index % len(_DASHES)],
            markers[index % len(markers)],
        )
        for index, name in enumerate(names)
    }
