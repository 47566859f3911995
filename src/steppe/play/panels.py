"""The landscape in a panel for each optimizer, and the tracks that run over it."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from steppe._shared.array_types import Floats
from steppe._shared.pictures import dress, new_figure
from steppe.play.end_points import DIVERGED
from steppe.play.report import heading
from steppe.play.results import Play, Player
from steppe.play.surface_grid import SurfaceGrid, surface_grid

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
    """What all starts of one optimizer draw in one panel.

    Attributes
    ----------
    axes : Axes
        The panel.
    player : Player
        Whose track it is.
    x, y : ndarray
        Shape (starts, steps + 1); NaN where there is nothing.
    trail : bool
        Whether it leaves a line behind.
    ink : str
        The line's colour.
    """

    axes: "Axes"
    player: Player
    x: Floats
    y: Floats
    trail: bool
    ink: str


def scene(play: Play) -> "tuple[Figure, list[Track]]":
    """Draw the landscape of one variable or two, and nothing yet that moves."""
    drawn = surface_grid(play, _POINTS[play.function.dimension])
    return (_plan_view if play.function.dimension == 2 else _section)(play, drawn)


def _plan_view(play: Play, drawn: SurfaceGrid) -> "tuple[Figure, list[Track]]":
    """Two variables: contours, and paths over them."""
    rows = math.ceil(len(play.players) / _COLUMNS)
    columns = math.ceil(len(play.players) / rows)
    size = (max(_PANEL * columns + 0.9, 7.0), _PANEL * rows + 1.1)
    figure = new_figure(heading(play), size)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    tracks = []
    for axes, player in zip(grid.flat, play.players, strict=False):
        filled, track = plan_panel(axes, play, drawn, player)
        tracks.append(track)
    for axes in grid.flat[len(play.players) :]:
        axes.set_axis_off()
    # The last row may be shorter.
    for axes in grid.flat[len(play.players) - columns : len(play.players)]:
        axes.set_xlabel("x")
        axes.tick_params(labelbottom=True)
    for axes in grid[:, 0]:
        axes.set_ylabel("y")
    places, labels = drawn.ticks()
    bar = figure.colorbar(filled, ax=grid, shrink=0.85, pad=0.015)
    bar.set_ticks(list(places), labels=labels)
    bar.set_label("f(x, y)" + (", logarithmic above its minimum" if drawn.unit else ""))
    return figure, tracks


def plan_panel(
    axes: "Axes", play: Play, drawn: SurfaceGrid, player: Player
) -> "tuple[QuadContourSet, Track]":
    """Draw the contours under one optimizer's paths; return them, and what is to run over them."""
    tones, levels = drawn.tone(drawn.values), drawn.levels(_LEVELS)
    filled = axes.contourf(*drawn.axes, tones, levels, cmap="viridis")
    axes.contour(*drawn.axes, tones, levels[1::2], colors="white", linewidths=0.4, alpha=0.4)
    _mark_minima(axes, play)
    _name(axes, player)
    axes.set(xlim=drawn.axes[0][[0, -1]], ylim=drawn.axes[1][[0, -1]])
    x, y = player.descent.points.transpose(2, 0, 1)
    return filled, Track(axes, player, x, y, True, "white")


def _section(play: Play, drawn: SurfaceGrid) -> "tuple[Figure, list[Track]]":
    """One variable: the curve with the points on it, and below where they are at each step."""
    columns = len(play.players)
    figure = new_figure(heading(play), (max(_PANEL * columns, 7.0), 5.6))
    grid = figure.subplots(
        2, columns, squeeze=False, sharex=True, sharey="row", height_ratios=[2, 3]
    )
    tracks = []
    for (above, below), player in zip(grid.T, play.players, strict=True):
        above.plot(drawn.axes[0], drawn.values, color="0.45", lw=1.3)
        # Points that rise far out of the picture do not decide its height.
        above.autoscale(False)
        _mark_minima(above, play)
        _name(above, player)
        for minimum in play.function.minima:
            below.axvline(minimum.point[0], color="0.8", lw=0.8)
        dress(below, "", grid="x")
        below.set(xlabel="x", ylim=(play.steps, 0), xlim=drawn.axes[0][[0, -1]])
        x = player.descent.points[..., 0]
        steps = np.broadcast_to(np.arange(play.steps + 1.0), x.shape)
        tracks.append(Track(above, player, x, player.descent.losses, False, "#0072B2"))
        tracks.append(Track(below, player, x, steps, True, "#0072B2"))
    grid[0, 0].set_ylabel("f(x)")
    grid[1, 0].set_ylabel("step")
    return figure, tracks


def _name(axes: "Axes", player: Player) -> None:
    lost = player.count(DIVERGED)
    dress(axes, f"{player.name}, lr {player.lr:g}" + (f"; {lost} diverged" if lost else ""))
    axes.grid(False)


def _mark_minima(axes: "Axes", play: Play) -> None:
    for minimum in play.function.minima:
        place = minimum.point if len(minimum.point) == 2 else (*minimum.point, minimum.value)
        marker, size = ("*", 14) if minimum.is_global else ("P", 7)
        axes.plot(*place, marker, ms=size, color="#D55E00", mec="white", mew=0.8, zorder=3)
