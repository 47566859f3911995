"""Draw paths over a loss surface, and losses, as several figures have them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from steppe._shared.messages import plural
from steppe._shared.palette import line_style
from steppe._shared.pictures import new_figure, style_axes
from steppe.play import (
    SweepResult,
    draw_contour_panel,
    draw_losses,
    draw_track,
    legend_handles,
    sample_surface,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

_POINTS = 181
_SHARE = ("share", "low", "high")
_FLOOR = 1e-6  # final losses below are drawn there
_SIZE = (15.0, 8.4)


def draw_sweep(data: Mapping[str, Any]) -> "Figure":
    """Draw what :func:`figures.descents.sweep` found: paths, losses, learning rates."""
    result = SweepResult.from_dict(data["play"])
    figure = new_figure(f"{result.function.name}: {how(data, result)}", _SIZE)
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(1.05, 1))[:, 0]
    draw_paths(above, result)
    losses, finals, reached = below.subplots(1, 3)
    draw_losses(losses, result)
    style_axes(losses, "loss above the minimum: median and middle half", grid="both")
    losses.set(xlabel="step", yscale="log")
    lowest = result.function.minima[0].value
    for index, optimizer in enumerate(result.optimizers):
        rates = np.array(data["rates"])
        gaps = np.array([optimizer.tried[lr] for lr in data["rates"]]) - lowest
        _draw_line(finals, index, optimizer.name, rates, np.maximum(gaps, _FLOOR))
        shares = data["reached"][optimizer.name]
        share, low, high = (np.array([each[key] for each in shares]) for key in _SHARE)
        _draw_line(reached, index, optimizer.name, rates, share)
        reached.vlines(rates, low, high, color=line_style(index).colour, lw=1, alpha=0.6)
    style_axes(finals, "final loss above the minimum, median", grid="both")
    finals.set(xscale="log", yscale="log", xlabel="learning rate")
    style_axes(reached, "share of all starts that ended at a global minimum", grid="both")
    reached.set(xscale="log", xlabel="learning rate", ylim=(-0.03, 1.03))
    below.legend(*losses.get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure


def how(data: Mapping[str, Any], result: SweepResult) -> str:
    """Return starts, steps, schedule and learning rates of a sweep in one line."""
    twice = " (SAM takes two gradients in each)" if "adam+sam" in data["reached"] else ""
    return (
        f"{plural(data['starts'], 'start')}, {len(result.starts)} drawn; "
        f"{result.steps} steps{twice}, cosine lr; each at its best of {len(data['rates'])} lr"
    )


def draw_paths(figure: "Figure | SubFigure", result: SweepResult) -> None:
    """Draw a panel of contours and paths for each optimizer, with one legend."""
    drawn = sample_surface(result, _POINTS)
    panels = figure.subplots(1, len(result.optimizers), sharey=True, squeeze=False)[0]
    for axes, optimizer in zip(panels, result.optimizers, strict=True):
        filled, track = draw_contour_panel(axes, result, drawn, optimizer)
        draw_track(track)
        axes.set_xlabel("x")
    panels[0].set_ylabel("y")
    positions, labels = drawn.ticks()
    bar = figure.colorbar(filled, ax=panels, shrink=0.9, pad=0.01)
    bar.set_ticks(list(positions), labels=labels)
    figure.legend(
        handles=legend_handles(result), loc="outside lower center", ncols=6, frameon=False
    )


def _draw_line(axes: "Axes", index: int, label: str, x: Any, y: Any) -> None:
    colour, dash, marker = line_style(index)
    axes.plot(x, y, dash, marker=marker, ms=5, color=colour, lw=1.7, label=label)
