"""The ratios as a picture."""

from collections.abc import Container, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from steppe.bench.disturbance import disturbed
from steppe.bench.measured import BASELINE
from steppe.bench.measurement import Measurement
from steppe.bench.results import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, told apart by colour-blind readers too (https://jfly.uni-koeln.de/color).
_FASTER, _UNDECIDED, _SLOWER = "#0072B2", "#7F7F7F", "#D55E00"


def plot(found: Sequence[Measurement], path: Path) -> bool:
    """Draw each optimizer's ratio to the baseline with its interval, one panel a model.

    Grey is what cannot be told from 1, or was disturbed.

    Parameters
    ----------
    found : sequence of Measurement
        What to draw.
    path : Path
        The PNG file to write, whole or not at all.

    Returns
    -------
    bool
        Whether there was anything to draw.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    from matplotlib.figure import Figure

    if not found:
        return False
    doubtful = disturbed(found)
    models = list(dict.fromkeys(one.model for one in found))
    names = list(dict.fromkeys(one.optimizer for one in found))
    size = 3.2 + 3.6 * len(models), 1.4 + 0.34 * len(names)
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(f"Time of a step over {BASELINE.name}'s", x=0.01, ha="left", fontsize=13)
    panels = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
    for axes, model in zip(panels, models, strict=True):
        for one in found:
            if one.model == model:
                _draw(axes, names.index(one.optimizer), one, _colour(one, doubtful))
        _dress(axes, model, names)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=150, format="png")
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


def _dress(axes: "Axes", model: str, names: Sequence[str]) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.set_title(model, loc="left", fontsize=11)
    axes.axvline(1.0, color="black", lw=0.8, zorder=0)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.2)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="x", alpha=0.25)
