"""Draw the ratios of step times as a picture."""

from collections.abc import Container, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from steppe._shared.palette import COLOURS, GREY
from steppe._shared.pictures import new_figure, style_axes, write_png
from steppe.bench.disturbance import disturbed
from steppe.bench.measurement import Measurement
from steppe.bench.optimizers import BASELINE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FASTER, _UNDECIDED, _SLOWER = COLOURS[0], GREY, COLOURS[3]


def plot(found: Sequence[Measurement], path: Path) -> bool:
    """Draw each optimizer's ratio to the baseline with its interval, one panel a model.

    Grey marks a ratio that cannot be told from 1, or was disturbed.

    Parameters
    ----------
    found : sequence of Measurement
        The measurements to draw.
    path : Path
        The PNG file to write. A failure leaves an old file as it was.

    Returns
    -------
    bool
        Whether there was anything to draw.

    Raises
    ------
    OSError
        The file cannot be written.
    """
    if not found:
        return False
    doubtful = disturbed(found)
    models = list(dict.fromkeys(one.model for one in found))
    names = list(dict.fromkeys(one.optimizer for one in found))
    size = 3.2 + 3.6 * len(models), 1.4 + 0.34 * len(names)
    figure = new_figure(f"Time of a step over {BASELINE.name}'s", size)
    panels = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
    for axes, model in zip(panels, models, strict=True):
        for one in found:
            if one.model == model:
                _draw(axes, names.index(one.optimizer), one, _colour(one, doubtful))
        _draw_axes(axes, model, names)
    write_png(figure, path)
    return True


def _colour(one: Measurement, doubtful: Container[Measurement]) -> str:
    if one in doubtful or one.ratio.low <= 1.0 <= one.ratio.high:
        return _UNDECIDED
    return _FASTER if one.ratio.high < 1.0 else _SLOWER


def _draw(axes: "Axes", row: int, one: Measurement, colour: str) -> None:
    value, low, high = one.ratio
    axes.plot([low, high], [row, row], color=colour, lw=2.5, alpha=0.45, solid_capstyle="butt")
    axes.plot([value], [row], "o", color=colour, ms=5)
    axes.annotate(
        f"{value:.2f}",
        xy=(max(value, high), row),
        xytext=(7, 0),
        textcoords="offset points",
        va="center",
        fontsize=9,
    )


def _draw_axes(axes: "Axes", model: str, names: Sequence[str]) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    style_axes(axes, model, grid="x")
    axes.axvline(1.0, color="black", lw=0.8, zorder=0)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.2)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
