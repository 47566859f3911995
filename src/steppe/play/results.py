"""What came of playing: everything that tables and pictures are made from."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from steppe._shared.array_types import Floats
from steppe._shared.files import write_text
from steppe._shared.json_values import plain
from steppe.functions import Function, find_function
from steppe.play.descent import Descent
from steppe.play.end_points import DIVERGED, GLOBAL, NONE, OTHER, EndPoint, reach

_DIGITS = 8  # of paths
_EXACT = 17  # what says all of a float


@dataclass(frozen=True, eq=False)
class Player:
    """One optimizer at its own best learning rate.

    Attributes
    ----------
    descent : Descent
        Its runs at the learning rate whose median final loss was the lowest.
    ends : sequence of EndPoint
        How each of them ended.
    tried : mapping of float to float
        The median final loss of each learning rate; infinite where half of the runs diverged.
    """

    descent: Descent
    ends: Sequence[EndPoint]
    tried: Mapping[float, float]

    @property
    def name(self) -> str:
        """The optimizer's name."""
        return self.descent.optimizer

    @property
    def lr(self) -> float:
        """The learning rate it is shown at."""
        return float(self.descent.settings["lr"])

    def count(self, kind: str) -> int:
        """How many runs ended so."""
        return sum(end.kind == kind for end in self.ends)

    @property
    def arrival(self) -> float:
        """The mean number of steps to a global minimum, of the runs that came to one; else NaN."""
        steps = [end.arrival for end in self.ends if end.arrival is not None]
        return math.fsum(steps) / len(steps) if steps else math.nan

    @property
    def at_end(self) -> bool:
        """Whether better may lie beyond the learning rates that were tried."""
        return len(self.tried) > 1 and self.lr in (min(self.tried), max(self.tried))

    @property
    def loss(self) -> float:
        """The median final loss."""
        return self.tried[self.lr]


@dataclass(frozen=True, eq=False)
class Play:
    """Optimizers on one function, all from the same starts.

    Attributes
    ----------
    function : Function
        What they descend on.
    parameters : mapping
        What it was made with.
    players : sequence of Player
        In the order they were named.
    steps : int
        Of every run.
    schedule : str
        Of lr: "constant" or "cosine".
    noise : float
        Standard deviation of what was added to every component of the gradients.
    seed : int
        Of the noise, and of the starts where they were drawn.
    """

    function: Function
    parameters: Mapping[str, float]
    players: Sequence[Player]
    steps: int
    schedule: str
    noise: float
    seed: int

    @property
    def starts(self) -> Floats:
        """Where all begin, shape (starts, dimension)."""
        return self.players[0].descent.points[:, 0]

    @property
    def rates(self) -> list[float]:
        """The learning rates that every optimizer was tried at."""
        return list(self.players[0].tried)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, from which all pictures can be drawn; what is not finite is None."""
        return {
            "function": self.function.name,
            "parameters": dict(self.parameters),
            "formula": self.function.formula,
            "bounds": [list(pair) for pair in self.function.bounds],
            "minima": [asdict(minimum) for minimum in self.function.minima],
            "reach": reach(self.function),
            "steps": self.steps,
            "schedule": self.schedule,
            "noise": self.noise,
            "seed": self.seed,
            "optimizers": [_player(player) for player in self.players],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read what :meth:`to_dict` has written."""
        return cls(
            find_function(data["function"], **data["parameters"]),
            data["parameters"],
            [_read_player(each) for each in data["optimizers"]],
            data["steps"],
            data["schedule"],
            data["noise"],
            data["seed"],
        )

    def save(self, path: Path) -> None:
        """Write it as JSON, whole or not at all.

        Raises
        ------
        OSError
            It cannot be written.
        """
        write_text(path, json.dumps(self.to_dict(), allow_nan=False) + "\n")


def _player(player: Player) -> dict[str, Any]:
    return {
        "name": player.name,
        "settings": player.descent.settings,
        "tried": [{"lr": lr, "loss": plain(loss, _EXACT)} for lr, loss in player.tried.items()],
        "ends": [asdict(end) for end in player.ends],
        "counts": {kind: player.count(kind) for kind in (GLOBAL, OTHER, NONE, DIVERGED)},
        "arrival": plain(player.arrival, _DIGITS),
        "points": plain(player.descent.points, _DIGITS),
        "losses": plain(player.descent.losses, _DIGITS),
    }


def _read_player(data: Mapping[str, Any]) -> Player:
    points, losses = (np.array(data[key], dtype=float) for key in ("points", "losses"))
    ends = [
        EndPoint(each["kind"], each["minimum"] and tuple(each["minimum"]), each["arrival"])
        for each in data["ends"]
    ]
    tried = {
        each["lr"]: math.inf if each["loss"] is None else each["loss"] for each in data["tried"]
    }
    return Player(Descent(data["name"], dict(data["settings"]), points, losses), ends, tried)
