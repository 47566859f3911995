"""Pictures of a play: paths over the landscape, and losses by step."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from steppe._shared.array_types import Floats
from steppe._shared.palette import COLOURS, look
from steppe._shared.pictures import dress, new_figure, write_png
from steppe.play.end_points import GLOBAL, NONE, OTHER
from steppe.play.panels import Track, scene
from steppe.play.report import heading
from steppe.play.results import Play

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

# How a path's end is marked, and what the mark says.
_ENDS = {
    GLOBAL: ("o", COLOURS[1], "ended at a global minimum"),
    OTHER: ("s", COLOURS[5], "at another minimum"),
    NONE: ("v", COLOURS[4], "at none"),
}
# Losses less than this above the minimum are rounding.
_FLOOR = 1e-14
_LOST = 1e300
# From this ratio of the highest to the lowest on, the axis is logarithmic.
_WIDE = 20.0


def plot_paths(play: Play, path: Path) -> None:
    """Draw where all starts of each optimizer went, for functions of one variable or two.

    Raises
    ------
    OSError
        The file cannot be written.
    """
    figure, tracks = scene(play)
    for track in tracks:
        draw_track(track)
    handles = legend(play)
    figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9
    )
    write_png(figure, path)


def plot_losses(play: Play, path: Path) -> None:
    """Draw each optimizer's losses by step: medians over the starts, and their middle half.

    Runs that diverged count as infinite. Losses are measured from the global minimum.

    Raises
    ------
    OSError
        The file cannot be written.
    """
    figure = new_figure(heading(play), (8.6, 4.6))
    axes = figure.subplots()
    found = draw_losses(axes, play)
    dress(axes, "Median over the starts, and their middle half")
    axes.set(xlabel="step", ylabel="f − its global minimum", xlim=(0, play.steps))
    low, high = extent(found)
    wide = high > _WIDE * low
    axes.set_yscale("log" if wide else "linear")
    axes.set_ylim(low / 2 if wide else 0.0, 1.1 * high)
    figure.legend(loc="outside right upper", frameon=False)
    write_png(figure, path)


def draw_losses(axes: "Axes", play: Play) -> list[Floats]:
    """Draw each optimizer's :func:`quartiles` by step, and return them."""
    steps = np.arange(play.steps + 1)
    found = [quartiles(play, player.descent.losses) for player in play.players]
    for place, (player, (low, middle, high)) in enumerate(zip(play.players, found, strict=True)):
        colour, dash, _ = look(place)
        label = f"{player.name}, lr {player.lr:g}"
        axes.fill_between(steps, low, high, color=colour, alpha=0.13, lw=0)
        axes.plot(steps, middle, dash, color=colour, lw=1.8, label=label)
    return found


def quartiles(play: Play, losses: Floats) -> Floats:
    """Return the three quartiles over the starts of the loss above the minimum, at each step.

    NaN where it is not finite.
    """
    gaps = np.maximum(losses - play.function.minima[0].value, _FLOOR)
    # Infinity itself would also swallow the quantiles that lie beside it.
    found = np.quantile(np.nan_to_num(gaps, nan=_LOST), [0.25, 0.5, 0.75], axis=0)
    return np.where(found < 1e-9 * _LOST, found, np.nan)


def extent(found: Sequence[Floats]) -> tuple[float, float]:
    """Return the lowest and the highest of all optimizers' quartiles that are worth showing."""
    # What rises far above all starts is on its way to infinity.
    highest = 4 * max(each[2, 0] for each in found)
    return float(np.nanmin(found)), float(min(np.nanmax(found), highest))


def draw_track(track: Track) -> None:
    """Draw where all starts went: their lines, where they began, and how they ended."""
    from matplotlib.patheffects import Normal, Stroke

    casing = [Stroke(linewidth=2.0, foreground="black", alpha=0.35), Normal()]
    for x, y, end in zip(track.x, track.y, track.player.ends, strict=True):
        if track.trail:
            effects = casing if track.ink == "white" else None
            track.axes.plot(x, y, color=track.ink, lw=0.9, alpha=0.9, path_effects=effects)
        track.axes.plot(x[0], y[0], "o", ms=4, mfc="none", mec=track.ink, mew=1.0, zorder=4)
        if end.kind in _ENDS:
            marker, colour, _ = _ENDS[end.kind]
            track.axes.plot(
                x[-1], y[-1], marker, ms=5.5, color=colour, mec="black", mew=0.7, zorder=5
            )


def legend(play: Play) -> "list[Line2D]":
    """Explain the marks that there are."""
    return [*_minima_drawn(play), *_marks(play)]


def _marks(play: Play) -> "list[Line2D]":
    from matplotlib.lines import Line2D

    kinds = [kind for kind in _ENDS if any(player.count(kind) for player in play.players)]
    begun = Line2D([], [], ls="", marker="o", mfc="none", mec="0.3", ms=4, label="start")
    ended = [
        Line2D([], [], ls="", marker=marker, color=colour, mec="black", mew=0.7, label=said)
        for marker, colour, said in (_ENDS[kind] for kind in kinds)
    ]
    return [begun, *ended]


def _minima_drawn(play: Play) -> "list[Line2D]":
    from matplotlib.lines import Line2D

    kinds = {minimum.is_global for minimum in play.function.minima}
    looks = {True: ("*", 12, "global minimum"), False: ("P", 7, "another")}
    return [
        Line2D([], [], ls="", marker=marker, ms=size, color="#D55E00", mec="white", label=said)
        for kind, (marker, size, said) in looks.items()
        if kind in kinds
    ]
