"""Parts that several charts of the page are made of, as plotly.js takes them."""

import math
from collections.abc import Sequence
from html import escape
from typing import Any


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
