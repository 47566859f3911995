"""Write the pictures of a sweep: paths over the loss surface, and losses by step."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from steppe._shared.array_types import Floats
from steppe._shared.palette import COLOURS, line_style
from steppe._shared.pictures import new_figure, style_axes, write_png
from steppe.play.end_points import GLOBAL, NONE, OTHER
from steppe.play.panels import Track, draw_panels
from steppe.play.report import heading
from steppe.play.results import SweepResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

# Marker, colour and label of each kind of end point.
_END_MARKS = {
    GLOBAL: ("o", COLOURS[1], "ended at a global minimum"),
    OTHER: ("s", COLOURS[5], "at another minimum"),
    NONE: ("v", COLOURS[4], "at none"),
}
# Losses less than this above the minimum are rounding errors.
_FLOOR = 1e-14
# Stands for the loss of a run that diverged.
_LOST = 1e300
# If highest and lowest loss have at least this ratio, the axis is logarithmic.
_WIDE = 20.0


def plot_paths(result: SweepResult, path: Path) -> None:
    """Write a picture of all paths of each optimizer, for functions of one variable or two.

    Raises
    ------
    OSError
        The file cannot be written.
    """
    figure, tracks = draw_panels(result)
    for track in tracks:
        draw_track(track)
    handles = legend_handles(result)
    figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9
    )
    write_png(figure, path)


def plot_losses(result: SweepResult, path: Path) -> None:
    """Write a picture of each optimizer's losses by step: medians and quartiles over the starts.

    Runs that diverged count as infinite. Losses are measured from the global minimum.

    Raises
    ------
    OSError
        The file cannot be written.
    """
    write_png(loss_figure(result), path)


def loss_figure(result: SweepResult) -> "Figure":
    """Draw each optimizer's losses by step: medians and quartiles over the starts."""
    figure = new_figure(heading(result), (8.6, 4.6))
    axes = figure.subplots()
    found = draw_losses(axes, result)
    style_axes(axes, "Median over the starts, and their middle half")
    axes.set(xlabel="step", ylabel="f − its global minimum", xlim=(0, result.steps))
    low, high = shown_range(found)
    wide = high > _WIDE * low
    axes.set_yscale("log" if wide else "linear")
    axes.set_ylim(low / 2 if wide else 0.0, 1.1 * high)
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def draw_losses(axes: "Axes", result: SweepResult) -> list[Floats]:
    """Draw each optimizer's :func:`quartiles` by step, and return them."""
    steps = np.arange(result.steps + 1)
    found = [quartiles(result, optimizer.descent.losses) for optimizer in result.optimizers]
    for index, (optimizer, (low, middle, high)) in enumerate(
        zip(result.optimizers, found, strict=True)
    ):
        colour, dash, _ = line_style(index)
        label = f"{optimizer.name}, lr {optimizer.lr:g}"
        axes.fill_between(steps, low, high, color=colour, alpha=0.13, lw=0)
        axes.plot(steps, middle, dash, color=colour, lw=1.8, label=label)
    return found


def quartiles(result: SweepResult, losses: Floats) -> Floats:
    """Return the quartiles over the starts of the loss above the minimum.

    Parameters
    ----------
    result : SweepResult
        The sweep that the losses are of.
    losses : ndarray
        Shape (starts, steps + 1). NaN counts as infinite.

    Returns
    -------
    ndarray
        Shape (3, steps + 1); NaN where a quartile is infinite.
    """
    gaps = np.maximum(losses - result.function.minima[0].value, _FLOOR)
    # Between infinity and a number NumPy would interpolate NaN, so a large number stands for it.
    found = np.quantile(np.nan_to_num(gaps, nan=_LOST), [0.25, 0.5, 0.75], axis=0)
    return np.where(found < 1e-9 * _LOST, found, np.nan)


def shown_range(found: Sequence[Floats]) -> tuple[float, float]:
    """Return the lowest and highest loss to show, from all optimizers' quartiles."""
    # A loss far above that of all starts is on its way to infinity.
    highest = 4 * max(each[2, 0] for each in found)
    return float(np.nanmin(found)), float(min(np.nanmax(found), highest))


def draw_track(track: Track) -> None:
    """Draw all paths of one optimizer: lines, starts as rings, and marks for how they ended."""
    from matplotlib.patheffects import Normal, Stroke

    casing = [Stroke(linewidth=2.0, foreground="black", alpha=0.35), Normal()]
    for x, y, end in zip(track.x, track.y, track.optimizer.end_points, strict=True):
        if track.has_line:
            effects = casing if track.colour == "white" else None
            track.axes.plot(x, y, color=track.colour, lw=0.9, alpha=0.9, path_effects=effects)
        track.axes.plot(x[0], y[0], "o", ms=4, mfc="none", mec=track.colour, mew=1.0, zorder=4)
        if end.kind in _END_MARKS:
            marker, colour, _ = _END_MARKS[end.kind]
            track.axes.plot(
                x[-1], y[-1], marker, ms=5.5, color=colour, mec="black", mew=0.7, zorder=5
            )


def legend_handles(result: SweepResult) -> "list[Line2D]":
    """Return the legend's entries for the marks that the panels have."""
    return [*_minimum_handles(result), *_path_handles(result)]


def _path_handles(result: SweepResult) -> "list[Line2D]":
    from matplotlib.lines import Line2D

    kinds = [
        kind for kind in _END_MARKS if any(optimizer.count(kind) for optimizer in result.optimizers)
    ]
    begun = Line2D([], [], ls="", marker="o", mfc="none", mec="0.3", ms=4, label="start")
    ended = [
        Line2D([], [], ls="", marker=marker, color=colour, mec="black", mew=0.7, label=said)
        for marker, colour, said in (_END_MARKS[kind] for kind in kinds)
    ]
    return [begun, *ended]


def _minimum_handles(result: SweepResult) -> "list[Line2D]":
    from matplotlib.lines import Line2D

    kinds = {minimum.is_global for minimum in result.function.minima}
    looks = {True: ("*", 12, "global minimum"), False: ("P", 7, "another")}
    return [
        Line2D([], [], ls="", marker=marker, ms=size, color="#D55E00", mec="white", label=said)
        for kind, (marker, size, said) in looks.items()
        if kind in kinds
    ]
