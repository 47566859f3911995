"""Parts that several charts of the page are made of, as plotly.js takes them."""

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from steppe._shared.page.styles import Style
from steppe._shared.statistics import Interval
from steppe.compare.report.near_range import NearRange

_ARROW = {"showarrow": True, "arrowhead": 2, "arrowwidth": 1.5, "font": {"size": 11}}


def linear_and_log(axis: str) -> dict[str, dict[str, Any]]:
    """Return a chart's variants whose axis is logarithmic or linear, by the switch's value."""
    return {scale: {axis: {"type": scale}} for scale in ("log", "linear")}


def optimizer_of_trace(optimizer: str) -> dict[str, Any]:
    """Return the entries of a trace that name its optimizer, for labels and for the legend."""
    return {"name": plotly_text(optimizer), "meta": optimizer}


def plotly_text(text: str) -> str:
    """Write text for Plotly, which reads some HTML in it, but not every entity."""
    return escape(text, quote=False)


def null_for_not_finite(values: Sequence[float]) -> list[float | None]:
    """Replace numbers that are not finite, which JSON cannot hold; Plotly leaves a gap at null.

    Examples
    --------
    >>> null_for_not_finite([1.0, float("nan")])
    [1.0, None]
    """
    return [value if math.isfinite(value) else None for value in values]


def error_bars(found: Sequence[Interval], colour: str) -> dict[str, Any]:
    """Return intervals as Plotly's error bars."""
    return {
        "type": "data",
        "symmetric": False,
        "array": null_for_not_finite([each.high - each.mean for each in found]),
        "arrayminus": null_for_not_finite([each.mean - each.low for each in found]),
        "color": colour,
        "thickness": 2,
        "width": 5,
    }


def near_and_all(
    near: NearRange | None, axis: str, beyond: Sequence[Mapping[str, Any]] = (), key: str = ""
) -> dict[str, dict[str, Any]]:
    """Return the variants of a switch between the contenders within reach and all of them.

    Empty where all are within reach. ``beyond`` are the annotations of those that are not, ``key``
    the values of the switches that stand before this one.
    """
    if near is None:
        return {}
    before = f"{key} " if key else ""
    return {
        f"{before}near": {axis: {"range": [near.low, near.high]}, "annotations": list(beyond)},
        f"{before}all": {axis: {"autorange": True}},
    }


def beyond_below(
    near: NearRange | None,
    x: float,
    values: Mapping[str, float],
    styles: Mapping[str, Style],
    write: Callable[[float], str],
) -> list[dict[str, Any]]:
    """Return arrows at the lower or upper end of a vertical axis to those beyond it.

    They stand side by side, leftwards from ``x``, a share of the chart's width.
    """
    found: list[dict[str, Any]] = []
    if near is None:
        return found
    for place, name in enumerate(near.beyond):
        below = values[name] < near.low
        found.append(
            {
                "name": name,
                "text": f"{plotly_text(name)} {write(values[name])}",
                "xref": "paper",
                "yref": "paper",
                "x": x,
                "y": 0.0 if below else 1.0,
                "ax": 0,
                "ay": -22 - 16 * place if below else 22 + 16 * place,
                "xanchor": "right",
                "arrowcolor": styles[name].colour,
                **_ARROW,
            }
        )
    return found


def beyond_beside(
    near: NearRange | None,
    values: Mapping[str, float],
    styles: Mapping[str, Style],
    write: Callable[[float], str],
) -> list[dict[str, Any]]:
    """Return arrows at an end of a horizontal axis to those beyond it, in the contenders' rows."""
    found: list[dict[str, Any]] = []
    if near is None:
        return found
    for name in near.beyond:
        left = values[name] < near.low
        found.append(
            {
                "name": name,
                "text": write(values[name]),
                "x": near.low if left else near.high,
                "y": plotly_text(name),
                "ax": 40 if left else -40,
                "ay": 0,
                "arrowcolor": styles[name].colour,
                **_ARROW,
            }
        )
    return found
