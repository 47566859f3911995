"""Paths over a landscape, beside what became of the losses, as several figures draw them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from steppe._shared.palette import look
from steppe._shared.pictures import dress, new_figure
from steppe._shared.plurals import many
from steppe.play.panels import plan_panel
from steppe.play.pictures import draw_losses, draw_track, legend
from steppe.play.results import Play
from steppe.play.surface_grid import surface_grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

_POINTS = 181
_SHARE = ("share", "low", "high")
_FLOOR = 1e-6  # final losses below are drawn there
_SIZE = (15.0, 8.4)


def draw_sweep(data: Mapping[str, Any]) -> "Figure":
    """Draw what :func:`figures.descents.sweep` found: paths, losses, learning rates."""
    play = Play.from_dict(data["play"])
    figure = new_figure(f"{play.function.name}: {how(data, play)}", _SIZE)
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(1.05, 1))[:, 0]
    draw_paths(above, play)
    losses, finals, reached = below.subplots(1, 3)
    draw_losses(losses, play)
    dress(losses, "loss above the minimum: median and middle half", grid="both")
    losses.set(xlabel="step", yscale="log")
    lowest = play.function.minima[0].value
    for place, player in enumerate(play.players):
        rates = np.array(data["rates"])
        gaps = np.array([player.tried[lr] for lr in data["rates"]]) - lowest
        _draw_line(finals, place, player.name, rates, np.maximum(gaps, _FLOOR))
        shares = data["reached"][player.name]
        share, low, high = (np.array([each[key] for each in shares]) for key in _SHARE)
        _draw_line(reached, place, player.name, rates, share)
        reached.vlines(rates, low, high, color=look(place).colour, lw=1, alpha=0.6)
    dress(finals, "final loss above the minimum, median", grid="both")
    finals.set(xscale="log", yscale="log", xlabel="learning rate")
    dress(reached, "share of all starts that ended at a global minimum", grid="both")
    reached.set(xscale="log", xlabel="learning rate", ylim=(-0.03, 1.03))
    below.legend(*losses.get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure


def how(data: Mapping[str, Any], play: Play) -> str:
    """Say how a sweep was made, in one line."""
    twice = " (SAM takes two gradients in each)" if "adam+sam" in data["reached"] else ""
    return (
        f"{many(data['starts'], 'start')}, {len(play.starts)} drawn; {play.steps} steps{twice}, "
        f"cosine lr; each at its best of {len(data['rates'])} lr"
    )


def draw_paths(figure: "Figure | SubFigure", play: Play) -> None:
    """Draw a panel of contours and paths for each optimizer, with one legend."""
    drawn = surface_grid(play, _POINTS)
    panels = figure.subplots(1, len(play.players), sharey=True, squeeze=False)[0]
    for axes, player in zip(panels, play.players, strict=True):
        filled, track = plan_panel(axes, play, drawn, player)
        draw_track(track)
        axes.set_xlabel("x")
    panels[0].set_ylabel("y")
    places, labels = drawn.ticks()
    bar = figure.colorbar(filled, ax=panels, shrink=0.9, pad=0.01)
    bar.set_ticks(list(places), labels=labels)
    figure.legend(handles=legend(play), loc="outside lower center", ncols=6, frameon=False)


def _draw_line(axes: "Axes", place: int, label: str, x: Any, y: Any) -> None:
    colour, dash, marker = look(place)
    axes.plot(x, y, dash, marker=marker, ms=5, color=colour, lw=1.7, label=label)
