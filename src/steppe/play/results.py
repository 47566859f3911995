"""The results of a sweep: all that tables, pictures and the page are made from, and its JSON."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from steppe._shared.array_types import Floats
from steppe._shared.files import write_text
from steppe._shared.json_values import json_ready
from steppe._shared.notebook_tables import html_table
from steppe.functions import Function, find_function
from steppe.play.descent import Descent
from steppe.play.end_points import DIVERGED, GLOBAL, NONE, OTHER, EndPoint, arrival_radius

_DIGITS = 8  # of paths
_EXACT = 17  # digits that determine a float64


@dataclass(frozen=True, eq=False)
class OptimizerResult:
    """One optimizer at its own best learning rate, by median final loss.

    Attributes
    ----------
    descent : Descent
        The runs at the learning rate whose median final loss was the lowest.
    end_points : sequence of EndPoint
        How the run from each start ended.
    tried : mapping of float to float
        The median final loss at each learning rate; infinite where half of the runs diverged.
    """

    descent: Descent
    end_points: Sequence[EndPoint]
    tried: Mapping[float, float]

    @property
    def name(self) -> str:
        """The optimizer's name."""
        return self.descent.optimizer

    @property
    def lr(self) -> float:
        """The best learning rate."""
        return float(self.descent.settings["lr"])

    def count(self, kind: str) -> int:
        """Return the number of runs whose end point is of that kind."""
        return sum(end.kind == kind for end in self.end_points)

    @property
    def arrival(self) -> float:
        """The mean number of steps to a global minimum over the runs that reached one; else NaN."""
        steps = [end.arrival for end in self.end_points if end.arrival is not None]
        return math.fsum(steps) / len(steps) if steps else math.nan

    @property
    def is_at_edge(self) -> bool:
        """Whether the best of several learning rates is the lowest or highest of those tried."""
        return len(self.tried) > 1 and self.lr in (min(self.tried), max(self.tried))

    @property
    def loss(self) -> float:
        """The median final loss at the best learning rate."""
        return self.tried[self.lr]


@dataclass(frozen=True, eq=False)
class SweepResult:
    """Optimizers on one function, all from the same starts: the result of a ``Sweep``.

    Attributes
    ----------
    function : Function
        The function that is minimised.
    parameters : mapping
        The function's parameters, such as its dimension.
    optimizers : sequence of OptimizerResult
        The optimizers, in the order of their names on the command line.
    steps : int
        Number of steps of every run.
    schedule : str
        Schedule of lr: "constant" or "cosine".
    noise : float
        Standard deviation of the noise in every component of the gradients.
    seed : int
        Seed of the noise, and of the starts if they were drawn.
    """

    function: Function
    parameters: Mapping[str, float]
    optimizers: Sequence[OptimizerResult]
    steps: int
    schedule: str
    noise: float
    seed: int

    @property
    def starts(self) -> Floats:
        """The points where all runs begin, shape (starts, dimension)."""
        return self.optimizers[0].descent.points[:, 0]

    @property
    def rates(self) -> list[float]:
        """The learning rates that every optimizer was tried at."""
        return list(self.optimizers[0].tried)

    def _repr_html_(self) -> str:
        """Return the table and the losses for notebooks."""
        # Imported here because they read these results.
        from steppe._shared.shown_figures import image_of
        from steppe.play.pictures import loss_figure
        from steppe.play.report import COLUMNS, heading, table_cells

        rows = [(each.name, *table_cells(self, each)) for each in self.optimizers]
        table = html_table(rows, dict.fromkeys(("", *COLUMNS), ""), heading(self))
        return table + image_of(loss_figure(self))

    def to_dict(self) -> dict[str, Any]:
        """Return all as JSON's own types; numbers that are not finite become None."""
        return {
            "function": self.function.name,
            "parameters": dict(self.parameters),
            "formula": self.function.formula,
            "bounds": [list(pair) for pair in self.function.bounds],
            "minima": [asdict(minimum) for minimum in self.function.minima],
            "reach": arrival_radius(self.function),
            "steps": self.steps,
            "schedule": self.schedule,
            "noise": self.noise,
            "seed": self.seed,
            "optimizers": [_optimizer_to_dict(optimizer) for optimizer in self.optimizers],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return the result that :meth:`to_dict` made a dictionary of."""
        return cls(
            find_function(data["function"], **data["parameters"]),
            data["parameters"],
            [_optimizer_from_dict(each) for each in data["optimizers"]],
            data["steps"],
            data["schedule"],
            data["noise"],
            data["seed"],
        )

    def save(self, path: Path) -> None:
        """Write the result as JSON. A failure leaves an old file as it was.

        Raises
        ------
        OSError
            The file cannot be written.
        """
        write_text(path, json.dumps(self.to_dict(), allow_nan=False) + "\n")


def _optimizer_to_dict(optimizer: OptimizerResult) -> dict[str, Any]:
    return {
        "name": optimizer.name,
        "settings": optimizer.descent.settings,
        "tried": [
            {"lr": lr, "loss": json_ready(loss, _EXACT)} for lr, loss in optimizer.tried.items()
        ],
        "ends": [asdict(end) for end in optimizer.end_points],
        "counts": {kind: optimizer.count(kind) for kind in (GLOBAL, OTHER, NONE, DIVERGED)},
        "arrival": json_ready(optimizer.arrival, _DIGITS),
        "points": json_ready(optimizer.descent.points, _DIGITS),
        "losses": json_ready(optimizer.descent.losses, _DIGITS),
    }


def _optimizer_from_dict(data: Mapping[str, Any]) -> OptimizerResult:
    points, losses = (np.array(data[key], dtype=float) for key in ("points", "losses"))
    end_points = [
        EndPoint(each["kind"], each["minimum"] and tuple(each["minimum"]), each["arrival"])
        for each in data["ends"]
    ]
    tried = {
        each["lr"]: math.inf if each["loss"] is None else each["loss"] for each in data["tried"]
    }
    return OptimizerResult(
        Descent(data["name"], dict(data["settings"]), points, losses), end_points, tried
    )
