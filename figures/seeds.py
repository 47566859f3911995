"""Means and intervals over seeds, and their drawing."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from steppe._shared.palette import LineStyle
from steppe._shared.statistics import interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def intervals(by_seed: Mapping[int, Iterable[float]]) -> dict[str, list[float]]:
    """Return mean and 95 % interval over seeds for each epoch, from each seed's values by epoch."""
    found = [interval(list(values)) for values in zip(*by_seed.values(), strict=True)]
    return {
        "mean": [each.mean for each in found],
        "low": [each.low for each in found],
        "high": [each.high for each in found],
    }


def draw_intervals(
    axes: "Axes", name: str, values: Mapping[str, Any], style: LineStyle, *, first: int = 1
) -> None:
    """Draw the result of :func:`intervals` over epochs, or steps, counted from ``first``."""
    mean, low, high = (np.array(values[key], dtype=float) for key in ("mean", "low", "high"))
    epochs = np.arange(first, first + len(mean))
    axes.fill_between(epochs, low, high, color=style.colour, alpha=0.15, lw=0)
    axes.plot(epochs, mean, style.dash, color=style.colour, lw=1.8, label=name)


def draw_seeds(axes: "Axes", row: int, values: Sequence[float], style: LineStyle) -> None:
    """Draw one value a seed in a row: each, their interval and their mean."""
    found, (colour, _, marker) = interval(values), style
    axes.plot([found.low, found.high], [row, row], color=colour, lw=3, alpha=0.4)
    axes.plot(values, [row] * len(values), "|", color=colour, ms=9)
    axes.plot([found.mean], [row], marker, color=colour, ms=7)
