"""A function over the part of its domain that is shown, and the scale it is shown on."""

from dataclasses import dataclass

import numpy as np
import torch

from steppe._shared.array_types import Floats
from steppe.play.results import Play

_MARGIN = 0.08
# Least part of the domain that is shown: what stays in one place needs surroundings.
_LEAST = 0.1
# Where most of the domain lies this many times higher than its lowest twentieth, equal steps of
# height would show nothing of what is low.
_WIDE = 100.0
_LOW, _LOWEST = 0.05, 0.005


@dataclass(frozen=True, eq=False)
class SurfaceGrid:
    """Values on a grid, of one variable or two.

    Attributes
    ----------
    axes : tuple of ndarray
        The grid's coordinates along each variable.
    values : ndarray
        The function there, shape (points of y, points of x), or (points,) of one variable.
    lowest : float
        The global minimum's value.
    unit : float or None
        Of the logarithmic scale, on which heights are shown as log₁₀(1 + height/unit); None if the
        scale is linear.
    """

    axes: tuple[Floats, ...]
    values: Floats
    lowest: float
    unit: float | None

    def tone(self, values: Floats) -> Floats:
        """Return where values lie on the scale."""
        if self.unit is None:
            return values
        return np.log10(1 + np.maximum(values - self.lowest, 0.0) / self.unit)

    def ticks(self) -> tuple[Floats, list[str]]:
        """Return places on the scale that suit labels, and the labels: the function's values."""
        highest = self.values.max()
        if self.unit is None:
            step = _round((highest - self.lowest) / 5)
            values = step * np.arange(np.ceil(self.lowest / step), highest / step)
        else:
            # The first that does not crowd the minimum's own.
            first = np.ceil(np.log10(max(self.lowest, 0.0) + 2 * self.unit))
            decades = 10.0 ** np.arange(first, np.log10(highest))
            values = np.array([self.lowest, *decades])
        return self.tone(values), [f"{value:.4g}" for value in values]

    def levels(self, count: int) -> Floats:
        """Return contour levels, evenly on the scale."""
        tones = self.tone(self.values)
        return np.linspace(self.tone(np.array(self.lowest)), tones.max(), count)


def surface_grid(play: Play, points: int) -> SurfaceGrid:
    """Sample the function around what was played, ``points`` along each variable."""
    axes = tuple(np.linspace(low, high, points) for low, high in window(play))
    grid = np.stack(np.meshgrid(*axes), -1)
    values = play.function(torch.from_numpy(grid)).numpy()
    lowest = play.function.minima[0].value
    heights = values - lowest
    wide = heights.max() > _WIDE * np.quantile(heights, _LOW)
    unit = float(np.quantile(heights, _LOWEST)) if wide and len(axes) > 1 else None
    return SurfaceGrid(axes, values, lowest, unit)


def window(play: Play) -> list[tuple[float, float]]:
    """Choose what is shown along each variable: all paths and global minima, within the bounds."""
    places = [player.descent.points.reshape(-1, play.function.dimension) for player in play.players]
    minima = [minimum.point for minimum in play.function.minima if minimum.is_global]
    shown = np.concatenate([*places, np.array(minima)])
    chosen = []
    for values, (low, high) in zip(shown.T, play.function.bounds, strict=True):
        extent = high - low
        inside = np.clip(values[np.isfinite(values)], low, high)
        middle = (inside.min() + inside.max()) / 2
        half = max((0.5 + _MARGIN) * np.ptp(inside), _LEAST * extent / 2)
        chosen.append((float(max(low, middle - half)), float(min(high, middle + half))))
    return chosen


def _round(step: float) -> float:
    """Return the next of 1, 2 and 5 times a power of ten."""
    power = 10.0 ** np.floor(np.log10(step))
    return float(next(nice * power for nice in (1, 2, 5, 10) if nice * power >= step))
