"""How optimizers are told apart in charts and tables: by colour, dash and marker."""

from collections.abc import Iterable
from dataclasses import dataclass

from steppe._shared.palette import COLOURS, GREY
from steppe.compare.records.results import StudyResults

# Black is the page's ink, so that it shows on a dark page too.
INK = "currentColor"
_COLOURS = (*COLOURS, INK, GREY)
# Lengths of strokes and gaps. Like the markers they repeat with another period than the colours, so
# that no two of the first 168 optimizers look the same.
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
    """How an optimizer is drawn, everywhere the same."""

    colour: str
    dash: str
    marker: str

    @property
    def path(self) -> str:
        """The marker as an SVG path about the origin."""
        return _MARKERS[self.marker]


def styles(results: StudyResults) -> dict[str, Style]:
    """Give every contender its look, by its place in the study."""
    return styles_of(each.name for each in results.contenders)


def styles_of(names: Iterable[str]) -> dict[str, Style]:
    """Give every name its look, by its place."""
    markers = tuple(_MARKERS)
    return {
        name: Style(
            _COLOURS[number % len(_COLOURS)],
            _DASHES[number % len(_DASHES)],
            markers[number % len(markers)],
        )
        for number, name in enumerate(names)
    }
