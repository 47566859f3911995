"""Adam, InvAdam and DualAdam on landscapes of two parameters, start and end marked.

Claim (DualAdam, Shi et al. 2026, arXiv 2603.07122): Adam runs into the nearest minimum, InvAdam
leaves sharp ones and prefers flat ground.

Came out, each at its own best of seven learning rates: on Lévy's function, as claimed: Adam ends
in the dent it starts in, whatever the rate (median loss 6.3), InvAdam and DualAdam leave some of
them (4.0 and 3.1), but lose two runs and one to divergence. Where gradients grow quickly, on the
six-hump camel and on Beale's function, they are held to learning rates a hundred times smaller
than Adam's, still lose a run or two, and get less far in the same number of steps.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from steppe.commands.pictures import new_figure
from steppe.figures.descents import draw_starts, sweep
from steppe.figures.paths import draw_paths, how
from steppe.play.results import Play

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_OPTIMIZERS = ("adam", "adam+warmup", "invadam", "dualadam")
_RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0, 10.0)
# Landscapes, and how far from the origin starts are drawn; None is the usual domain.
_REACH = {"six-hump-camel": 1.5, "beale": 1.5, "levy": None}


def measure(
    *,
    steps: int = 500,
    starts: int = 40,
    rates: tuple[float, ...] = _RATES,
    reach: Mapping[str, float | None] = _REACH,
) -> dict[str, Any]:
    """Descend on each landscape from random places, at every learning rate."""
    return {
        name: sweep(
            name,
            optimizers=_OPTIMIZERS,
            rates=rates,
            starts=draw_starts(name, starts, away),
            steps=steps,
            shown=8,
        )
        for name, away in reach.items()
    }


def draw(data: Mapping[str, Any]) -> "Figure":
    """Draw a row of panels for each landscape, every optimizer at its best learning rate."""
    plays = {name: Play.from_dict(found["play"]) for name, found in data.items()}
    name, first = next(iter(plays.items()))
    figure = new_figure(how(data[name], first), (13.5, 4.1 * len(plays)))
    parts = figure.subfigures(len(plays), 1, squeeze=False)[:, 0]
    for part, (name, play) in zip(parts, plays.items(), strict=True):
        part.suptitle(name, x=0.01, ha="left", fontsize=11)
        draw_paths(part, play)
    return figure
