"""Learning curves as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from steppe.compare.run import Outcome
from steppe.compare.summary import Finished

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

# Okabe and Ito's colours, told apart by colour-blind readers too (https://jfly.uni-koeln.de/color).
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
# Alternating, so that of two lines that coincide, as DualAdam's and its control's do, both show.
_DASHES = ("--", "-")

_LABEL_HEIGHT = 0.07


def plot_curves(finished: Finished, title: str, path: Path) -> bool:
    """Draw train loss, test loss and test accuracy by epoch; nothing if nothing has finished.

    Lines are means over seeds, bands run from the lowest to the highest seed; diverged runs are
    left out.

    Parameters
    ----------
    finished : mapping
        Outcomes by optimizer, then by seed.
    title : str
        Over the picture.
    path : Path
        The PNG file to write.

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

    curves = {name: runs for name in finished if (runs := _whole(finished, name))}
    if not curves:
        return False
    figure = Figure(figsize=(13, 4.4), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=13)
    train, test, accuracy = figure.subplots(1, 3)
    for number, (name, runs) in enumerate(curves.items()):
        style = _COLOURS[number % len(_COLOURS)], _DASHES[number % len(_DASHES)]
        _draw(train, name, [[e.train_loss for e in run.curve] for run in runs], *style)
        _draw(test, name, [[e.test_loss for e in run.curve] for run in runs], *style)
        _draw(accuracy, name, [[100 * e.test_accuracy for e in run.curve] for run in runs], *style)
    for axes, label in ((train, "Train loss"), (test, "Test loss"), (accuracy, "Test accuracy, %")):
        axes.set_title(label, loc="left", fontsize=11)
        axes.set_xlabel("epoch")
        axes.set_xlim(left=0, right=len(next(iter(curves.values()))[0].curve))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.25)
    train.set_yscale("log")
    test.set_yscale("log")
    _leave_out_the_climb(accuracy)
    _label_ends(accuracy)
    figure.savefig(path, dpi=150)
    return True


def _whole(finished: Finished, name: str) -> list[Outcome]:
    return [outcome for outcome in finished[name].values() if not outcome.diverged]


def _draw(
    axes: "Axes", name: str, values: Sequence[Sequence[float]], colour: str, dash: str
) -> None:
    by_seed = np.array(values)
    epochs = np.arange(1, by_seed.shape[1] + 1)
    axes.fill_between(epochs, by_seed.min(0), by_seed.max(0), color=colour, alpha=0.13, lw=0)
    # A single epoch is a point: a line alone would not show.
    marker = "o" if len(epochs) == 1 else None
    axes.plot(epochs, by_seed.mean(0), dash, color=colour, label=name, lw=1.7, marker=marker)


def _leave_out_the_climb(axes: "Axes") -> None:
    """Show where the lines differ: from the lowest value after a sixth of the epochs upwards."""
    values = [np.asarray(line.get_ydata(), dtype=float) for line in axes.lines]
    low = min(line[len(line) // 6 :].min() for line in values)
    high = max(line.max() for line in values)
    margin = 0.1 * max(high - low, 1.0)
    axes.set_ylim(low - margin, min(100.0, high + margin))


def _label_ends(axes: "Axes") -> None:
    """Write every line's name at its end, moved up or down so that none covers another."""
    bottom, top = axes.get_ylim()

    def end(line: "Line2D") -> float:
        return (float(np.asarray(line.get_ydata())[-1]) - bottom) / (top - bottom)

    lines = sorted(axes.lines, key=end)
    lowest = -_LABEL_HEIGHT
    places = []
    for line in lines:
        lowest = max(end(line), lowest + _LABEL_HEIGHT)
        places.append(lowest)
    # Centre the stack on the ends it stands for, instead of only pushing upwards.
    shift = float(np.mean(places)) - float(np.mean([end(line) for line in lines]))
    for line, place in zip(lines, places, strict=True):
        axes.annotate(
            str(line.get_label()),
            xy=(1.0, end(line)),
            xytext=(1.07, place - shift),
            xycoords="axes fraction",
            color=line.get_color(),
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": line.get_color(), "lw": 0.8, "alpha": 0.6},
        )
