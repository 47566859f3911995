"""Sample a function over the part of its domain that is shown, and scale its values for colours.

Panels, the page's charts and figures draw it.
"""

from dataclasses import dataclass

import numpy as np
import torch

from steppe._shared.array_types import Floats
from steppe.play.results import SweepResult

_MARGIN = 0.08
# The least share of the domain that is shown, so that a path that hardly moves has surroundings.
_LEAST = 0.1
# If the highest point shown lies this many times higher than the lowest twentieth, contours at
# equal steps of height would show nothing of the low parts: the scale is then logarithmic.
_WIDE = 100.0
# Quantiles of the heights: the lowest twentieth, and the unit of the logarithmic scale.
_LOW, _LOWEST = 0.05, 0.005


@dataclass(frozen=True, eq=False)
class SurfaceGrid:
    """Values on a grid, of one variable or two.

    Attributes
    ----------
    axes : tuple of ndarray
        The grid's coordinates along each variable.
    values : ndarray
        The function's values, shape (points of y, points of x), or (points,) of one variable.
    lowest : float
        The function's value at its global minimum.
    unit : float or None
        Unit of a logarithmic scale, on which the height h above the minimum is shown as
        log₁₀(1 + h/unit); None if the scale is linear.
    """

    axes: tuple[Floats, ...]
    values: Floats
    lowest: float
    unit: float | None

    def to_scale(self, values: Floats) -> Floats:
        """Return the positions of values on the scale."""
        if self.unit is None:
            return values
        return np.log10(1 + np.maximum(values - self.lowest, 0.0) / self.unit)

    def ticks(self) -> tuple[Floats, list[str]]:
        """Return positions on the scale, and labels for them: round values of the function."""
        highest = self.values.max()
        if self.unit is None:
            step = _round_up((highest - self.lowest) / 5)
            values = step * np.arange(np.ceil(self.lowest / step), highest / step)
        else:
            # The first power of ten whose label does not overlap the minimum's.
            first = np.ceil(np.log10(max(self.lowest, 0.0) + 2 * self.unit))
            decades = 10.0 ** np.arange(first, np.log10(highest))
            values = np.array([self.lowest, *decades])
        return self.to_scale(values), [f"{value:.4g}" for value in values]

    def levels(self, count: int) -> Floats:
        """Return contour levels, evenly spaced on the scale."""
        scaled = self.to_scale(self.values)
        return np.linspace(self.to_scale(np.array(self.lowest)), scaled.max(), count)


def sample_surface(result: SweepResult, points: int) -> SurfaceGrid:
    """Sample the function around all paths.

    Parameters
    ----------
    result : SweepResult
        Paths on a function of one variable or two.
    points : int
        Number of points along each variable.
    """
    axes = tuple(np.linspace(low, high, points) for low, high in shown_bounds(result))
    grid = np.stack(np.meshgrid(*axes), -1)
    values = result.function(torch.from_numpy(grid)).numpy()
    lowest = result.function.minima[0].value
    heights = values - lowest
    wide = heights.max() > _WIDE * np.quantile(heights, _LOW)
    unit = float(np.quantile(heights, _LOWEST)) if wide and len(axes) > 1 else None
    return SurfaceGrid(axes, values, lowest, unit)


def shown_bounds(result: SweepResult) -> list[tuple[float, float]]:
    """Return the range to show along each variable.

    It holds all paths and global minima as far as they lie within the function's bounds.
    """
    paths = [
        optimizer.descent.points.reshape(-1, result.function.dimension)
        for optimizer in result.optimizers
    ]
    minima = [minimum.point for minimum in result.function.minima if minimum.is_global]
    shown = np.concatenate([*paths, np.array(minima)])
    chosen = []
    for values, (low, high) in zip(shown.T, result.function.bounds, strict=True):
        width = high - low
        inside = np.clip(values[np.isfinite(values)], low, high)
        middle = (inside.min() + inside.max()) / 2
        half = max((0.5 + _MARGIN) * np.ptp(inside), _LEAST * width / 2)
        chosen.append((float(max(low, middle - half)), float(min(high, middle + half))))
    return chosen


def _round_up(step: float) -> float:
    """Return the next larger of 1, 2 and 5 times a power of ten."""
    power = 10.0 ** np.floor(np.log10(step))
    return float(next(nice * power for nice in (1, 2, 5, 10) if nice * power >= step))
