"""Draw the loss surface in a panel for each optimizer, ready for the paths that run over it.

``pictures`` draws whole paths into the panels, ``animation`` draws them step by step.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from steppe._shared.array_types import Floats
from steppe._shared.pictures import new_figure, style_axes
from steppe.play.end_points import DIVERGED
from steppe.play.report import heading
from steppe.play.results import OptimizerResult, SweepResult
from steppe.play.surface_grid import SurfaceGrid, sample_surface

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.contour import QuadContourSet
    from matplotlib.figure import Figure

_COLUMNS = 4
_PANEL = 3.1
_POINTS = {1: 2001, 2: 181}
_LEVELS = 25


@dataclass(frozen=True, eq=False)
class Track:
    """The paths of one optimizer from all starts, in one panel.

    Attributes
    ----------
    axes : Axes
        The panel.
    optimizer : OptimizerResult
        The optimizer.
    x, y : ndarray
        Coordinates in the panel, shape (starts, steps + 1); NaN after a run has diverged.
    has_line : bool
        Whether the path is drawn as a line; else only its current point is.
    colour : str
        The line's colour.
    """

    axes: "Axes"
    optimizer: OptimizerResult
    x: Floats
    y: Floats
    has_line: bool
    colour: str


def draw_panels(result: SweepResult) -> "tuple[Figure, list[Track]]":
    """Draw the function of one variable or two in a panel for each optimizer.

    Returns
    -------
    Figure, list of Track
        The figure without paths, and the paths to draw into it.
    """
    drawn = sample_surface(result, _POINTS[result.function.dimension])
    return (_draw_two_variables if result.function.dimension == 2 else _draw_one_variable)(
        result, drawn
    )


def _draw_two_variables(result: SweepResult, drawn: SurfaceGrid) -> "tuple[Figure, list[Track]]":
    """Draw contours for paths over two variables."""
    rows = math.ceil(len(result.optimizers) / _COLUMNS)
    columns = math.ceil(len(result.optimizers) / rows)
    size = (max(_PANEL * columns + 0.9, 7.0), _PANEL * rows + 1.1)
    figure = new_figure(heading(result), size)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    tracks = []
    for axes, optimizer in zip(grid.flat, result.optimizers, strict=False):
        filled, track = draw_contour_panel(axes, result, drawn, optimizer)
        tracks.append(track)
    for axes in grid.flat[len(result.optimizers) :]:
        axes.set_axis_off()
    # The last row may be shorter.
    for axes in grid.flat[len(result.optimizers) - columns : len(result.optimizers)]:
        axes.set_xlabel("x")
        axes.tick_params(labelbottom=True)
    for axes in grid[:, 0]:
        axes.set_ylabel("y")
    positions, labels = drawn.ticks()
    bar = figure.colorbar(filled, ax=grid, shrink=0.85, pad=0.015)
    bar.set_ticks(list(positions), labels=labels)
    bar.set_label("f(x, y)" + (", logarithmic above its minimum" if drawn.unit else ""))
    return figure, tracks


def draw_contour_panel(
    axes: "Axes", result: SweepResult, drawn: SurfaceGrid, optimizer: OptimizerResult
) -> "tuple[QuadContourSet, Track]":
    """Draw contours into one panel; return them, and the paths that belong over them."""
    scaled, levels = drawn.to_scale(drawn.values), drawn.levels(_LEVELS)
    filled = axes.contourf(*drawn.axes, scaled, levels, cmap="viridis")
    axes.contour(*drawn.axes, scaled, levels[1::2], colors="white", linewidths=0.4, alpha=0.4)
    _mark_minima(axes, result)
    _title_panel(axes, optimizer)
    axes.set(xlim=drawn.axes[0][[0, -1]], ylim=drawn.axes[1][[0, -1]])
    x, y = optimizer.descent.points.transpose(2, 0, 1)
    return filled, Track(axes, optimizer, x, y, True, "white")


def _draw_one_variable(result: SweepResult, drawn: SurfaceGrid) -> "tuple[Figure, list[Track]]":
    """Draw the curve for points on one variable, and below it axes for their position by step."""
    columns = len(result.optimizers)
    figure = new_figure(heading(result), (max(_PANEL * columns, 7.0), 5.6))
    grid = figure.subplots(
        2, columns, squeeze=False, sharex=True, sharey="row", height_ratios=[2, 3]
    )
    tracks = []
    for (above, below), optimizer in zip(grid.T, result.optimizers, strict=True):
        above.plot(drawn.axes[0], drawn.values, color="0.45", lw=1.3)
        # A run that diverges rises far above the curve, and would shrink it to a line.
        above.autoscale(False)
        _mark_minima(above, result)
        _title_panel(above, optimizer)
        for minimum in result.function.minima:
            below.axvline(minimum.point[0], color="0.8", lw=0.8)
        style_axes(below, "", grid="x")
        below.set(xlabel="x", ylim=(result.steps, 0), xlim=drawn.axes[0][[0, -1]])
        x = optimizer.descent.points[..., 0]
        steps = np.broadcast_to(np.arange(result.steps + 1.0), x.shape)
        tracks.append(Track(above, optimizer, x, optimizer.descent.losses, False, "#0072B2"))
        tracks.append(Track(below, optimizer, x, steps, True, "#0072B2"))
    grid[0, 0].set_ylabel("f(x)")
    grid[1, 0].set_ylabel("step")
    return figure, tracks


def _title_panel(axes: "Axes", optimizer: OptimizerResult) -> None:
    lost = optimizer.count(DIVERGED)
    style_axes(
        axes, f"{optimizer.name}, lr {optimizer.lr:g}" + (f"; {lost} diverged" if lost else "")
    )
    axes.grid(False)


def _mark_minima(axes: "Axes", result: SweepResult) -> None:
    for minimum in result.function.minima:
        position = minimum.point if len(minimum.point) == 2 else (*minimum.point, minimum.value)
        marker, size = ("*", 14) if minimum.is_global else ("P", 7)
        axes.plot(*position, marker, ms=size, color="#D55E00", mec="white", mew=0.8, zorder=3)
