"""One row of a monitored run's history, and the picture of all rows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from steppe._shared.notebook_tables import field_rows, html_table
from steppe._shared.palette import line_style
from steppe._shared.pictures import new_figure
from steppe.landscape._drawing import RED, axes_for, needs_log_scale
from steppe.landscape.result import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class RunMeasurement(Result):
    """What :class:`~steppe.landscape.Monitor` has measured after a step.

    Attributes
    ----------
    step : int
        The number of optimizer steps so far.
    values : dict
        The values by name; NaN where one could not be measured.
    reasons : dict
        By quantity, why it could not be measured.
    samples : int
        Number of samples that it was measured on, in this process.
    products : int
        Number of products with the Hessian that it took.
    seconds : float
        How long it took.
    verified : bool
        Whether the searches for eigenvalues verified that no larger one is missed. Otherwise
        λ_max is an eigenvalue, and the largest one most probably, but at least a lower bound.
    """

    step: int
    values: dict[str, float]
    reasons: dict[str, str]
    samples: int
    products: int
    seconds: float
    verified: bool


class WatchedHistory:
    """The measurements of a run, as a picture, a table and plain numbers.

    Attributes
    ----------
    history : list of RunMeasurement
        All measurements.
    """

    def __init__(self) -> None:
        self.history: list[RunMeasurement] = []

    def cost(self) -> dict[str, float]:
        """Return what measuring costs: numbers by name."""
        raise NotImplementedError

    def plot(self) -> "Figure":
        """Draw the run: λ_max, its stability, loss, sharpness, update size, and diagnostics.

        Raises
        ------
        ImportError
            Matplotlib is not installed.
        ValueError
            Nothing has been measured yet.
        """
        if not self.history:
            raise ValueError(
                "nothing has been measured yet: pass every=, or call measure() at the end of a run "
                "that is too short for its share of the time"
            )
        return run_figure(self.history)

    def to_dict(self) -> dict[str, Any]:
        """Return the history and its cost, ready for ``json.dumps``."""
        return {"history": [row.to_dict() for row in self.history], **self.cost()}

    def _repr_html_(self) -> str:
        """Return a table of the last values and the cost, and the picture, for notebooks."""
        values = self.history[-1].values if self.history else {}
        table = html_table(field_rows(values | self.cost()), caption="Monitor")
        if not self.history or not find_spec("matplotlib"):
            return table
        from steppe._shared.shown_figures import image_of

        return table + image_of(self.plot())


# The panels of a picture: a title, and the values in it.
_PANELS = (
    ("Largest eigenvalue of the Hessian", ("lambda_max", "sam_threshold")),
    ("Stability: unstable above 1", ("stability",)),
    ("Loss and its rise (SAM's sharpness)", ("loss", "sharpness")),
    ("Update against weights", ("update_ratio",)),
)


def run_figure(history: Sequence[RunMeasurement]) -> "Figure":
    """Draw a run: λ_max, its stability, loss and sharpness, update size, and the diagnostics."""
    names = list(dict.fromkeys(name for row in history for name in row.values))
    own = [name for name in names if name.startswith("optimizer/")]
    panels = [(title, [each for each in wanted if each in names]) for title, wanted in _PANELS]
    panels += [(name.removeprefix("optimizer/"), [name]) for name in own]
    panels = [(title, shown) for title, shown in panels if shown]
    rows = max(1, math.ceil(len(panels) / 2))
    figure = new_figure(None, (11.0, 2.7 * rows))
    every: Any = figure.subplots(rows, 2, squeeze=False)
    for axes, panel in zip(every.flat, panels, strict=False):
        _draw(axes, history, *panel)
    for axes in every.flat[len(panels) :]:
        axes.axis("off")
    return figure


def _draw(axes: "Axes", history: Sequence[RunMeasurement], title: str, names: list[str]) -> None:
    axes_for(axes, title)
    steps = [row.step for row in history]
    drawn = []
    for index, name in enumerate(names):
        values = np.array([row.values.get(name, math.nan) for row in history])
        values[~np.isfinite(values)] = math.nan
        style = line_style(index)
        axes.plot(
            steps, values, color=style.colour, ls=style.dash, marker=style.marker, ms=3, label=name
        )
        drawn.append(values[np.isfinite(values)])
    if "stability" in names:
        axes.axhline(1.0, color=RED, lw=0.8)
    if needs_log_scale(np.concatenate(drawn)):
        axes.set_yscale("log")
    if len(names) > 1:
        axes.legend(frameon=False)
    axes.set_xlabel("optimizer steps")
