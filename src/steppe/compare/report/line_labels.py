"""Names beside the ends of a picture's lines."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

# A share of the picture's height.
_LABEL_HEIGHT = 0.07


def label_line_ends(axes: "Axes") -> None:
    """Write every line's name beside its end, moved up or down so that none covers another."""
    bottom, top = axes.get_ylim()

    def end(line: "Line2D") -> tuple[float, float]:
        x, y = (np.asarray(values)[-1] for values in line.get_data())
        # Of a line that leaves the picture, where it does.
        return float(x), float(min(max(y, bottom), top))

    lines = sorted(axes.lines, key=lambda line: end(line)[1])
    heights = [(end(line)[1] - bottom) / (top - bottom) for line in lines]
    for line, height in zip(lines, _move_apart(heights, _LABEL_HEIGHT), strict=True):
        axes.annotate(
            str(line.get_label()),
            xy=end(line),
            xytext=(1.09, height),
            textcoords="axes fraction",
            color=line.get_color(),
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": line.get_color(),
                "lw": 0.8,
                "alpha": 0.6,
                "relpos": (0.0, 0.5),
                "shrinkA": 1.0,
            },
        )


def _move_apart(heights: Sequence[float], gap: float) -> list[float]:
    """Move ascending heights at least ``gap`` apart, near where they were, within (0, 1).

    If there are more than fit, they are centred on the middle.
    """
    moved: list[float] = []
    for height in heights:
        moved.append(max(height, moved[-1] + gap) if moved else height)
    # Centre the stack on the line ends that it labels, instead of only pushing upwards.
    shift = float(np.mean(moved)) - float(np.mean(heights))
    low, high = moved[0] - shift, moved[-1] - shift
    if high - low > 1.0:
        shift += (low + high) / 2 - 0.5
    else:
        shift += max(high - 1.0, 0.0) + min(low, 0.0)
    return [height - shift for height in moved]
