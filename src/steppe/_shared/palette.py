"""Colours that colour-blind readers tell apart too, and what else tells lines apart."""

from typing import NamedTuple

# Okabe and Ito's (https://jfly.uni-koeln.de/color), their black aside, and a grey.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
GREY = "#999999"

_ALL = (*COLOURS, "#000000", GREY)
# Alternating, so that of two lines that coincide, as DualAdam's and its control's do, both show.
_DASHES = ("--", "-", ":")
_MARKERS = ("o", "s", "^", "D", "v")


class Look(NamedTuple):
    """How one of several things is drawn."""

    colour: str
    dash: str
    marker: str


def look(place: int) -> Look:
    """Return the look of the one at a place, from 0; the first 24 have lines of their own.

    Examples
    --------
    >>> look(1)
    Look(colour='#E69F00', dash='-', marker='s')
    """
    return Look(
        _ALL[place % len(_ALL)], _DASHES[place % len(_DASHES)], _MARKERS[place % len(_MARKERS)]
    )
