"""Draw the ratios of step times as a picture."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any, NamedTuple

from steppe._shared.palette import COLOURS, GREY
from steppe._shared.pictures import new_figure, style_axes, write_png
from steppe.bench.disturbance import disturbed
from steppe.bench.measurement import Measurement
from steppe.bench.optimizers import BASELINE
from steppe.bench.report import described

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class _Mark(NamedTuple):
    """How a kind of row is drawn; shape and filling tell them apart without colour."""

    label: str
    marker: str
    colour: str
    filling: str


_OURS = _Mark("steppe", "o", COLOURS[0], COLOURS[0])
_THEIRS = _Mark("torch and other packages", "s", COLOURS[3], "white")
_DISTURBED = _Mark("disturbed by other work", "X", GREY, GREY)
_COPY = _Mark("copying the bytes that a step must move", "|", "black", "black")

# Of the title's font size.
_LETTERS_PER_INCH = 11
# A ratio of the ends of an axis beyond which three numbers a decade would touch.
_WIDE = 500


def plot(found: Sequence[Measurement], machine: str, path: Path) -> bool:
    """Draw each optimizer's ratio to the baseline with its interval, one panel a model.

    Beside it stands the ratio of the time in which the bytes alone are copied.

    Parameters
    ----------
    found : sequence of Measurement
        The measurements to draw.
    machine : str
        Processor, threads and versions, for the title.
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
    size = max(3.0 + 3.4 * len(models), 9.0), 2.1 + 0.3 * len(names)
    figure = new_figure(None, size)
    title = f"Time of an optimizer's step, {BASELINE.name} = 1, with 95 % intervals"
    wrapped = fill(machine, int(_LETTERS_PER_INCH * size[0]))
    figure.suptitle(f"{title}\n{wrapped}", x=0.01, ha="left", fontsize=10)
    panels = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
    for axes, model in zip(panels, models, strict=True):
        shown = [one for one in found if one.model == model]
        for one in shown:
            usual = _OURS if one.engine else _THEIRS
            _draw(axes, names.index(one.optimizer), one, _DISTURBED if one in doubtful else usual)
        _draw_axes(axes, described(model, shown[0].numbers).replace(": ", "\n"), names)
    copies = [_COPY] if any(one.copy_ratio is not None for one in found) else []
    _draw_legend(figure, [_OURS, _THEIRS, *copies, *([_DISTURBED] if doubtful else [])])
    write_png(figure, path)
    return True


def _draw(axes: "Axes", row: int, one: Measurement, mark: _Mark) -> None:
    value, low, high = one.ratio
    axes.plot([low, high], [row, row], color=mark.colour, lw=2.0, solid_capstyle="butt", zorder=2)
    axes.plot([value], [row], **_style(mark), zorder=3)
    if one.copy_ratio is not None:
        axes.plot([one.copy_ratio], [row], **_style(_COPY), zorder=4)
    axes.annotate(
        f"{value:.2f}",
        xy=(max(high, one.copy_ratio or 0.0), row),
        xytext=(7, 0),
        textcoords="offset points",
        va="center",
        fontsize=8.5,
        # Legible over the line at 1.
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
    )


def _draw_legend(figure: "Figure", marks: Sequence[_Mark]) -> None:
    """Explain the kinds of marks, below the panels."""
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], label=mark.label, **_style(mark)) for mark in marks]
    figure.legend(handles=lines, loc="outside lower left", ncols=4, frameon=False, fontsize=9)


def _style(mark: _Mark) -> dict[str, Any]:
    return {
        "marker": mark.marker,
        "color": mark.colour,
        "markerfacecolor": mark.filling,
        "ms": 10 if mark is _COPY else 5.5,
        "mew": 1.4,
        "ls": "",
    }


def _draw_axes(axes: "Axes", title: str, names: Sequence[str]) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    style_axes(axes, title, grid="x")
    axes.axvline(1.0, color="black", lw=0.8, zorder=0)
    axes.set_xscale("log")
    axes.margins(x=0.2)
    low, high = axes.get_xlim()
    steps = (1.0, 2.0, 5.0) if high < _WIDE * low else (1.0,)
    axes.xaxis.set_major_locator(LogLocator(subs=steps))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
