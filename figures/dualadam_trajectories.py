"""Adam, InvAdam and DualAdam on landscapes of two parameters, start and end marked.

Claim (DualAdam, Shi et al. 2026, arXiv 2603.07122): Adam runs into the nearest minimum, InvAdam
leaves sharp ones and prefers flat ground.

Came out: only at small learning rates. On Lévy's function at lr 0.1 Adam reaches the global
minimum from 3 % of 40 starts, InvAdam and DualAdam from 20 %. But nothing keeps Adam's lr so
small, and at the best of those tried for each it reaches the global minimum more often on all
three: from 82 % of the starts against 75 % (InvAdam) and 62 % (DualAdam) on the six-hump camel, 82
% against 12 % on Beale's, 60 % against 20 % on Lévy's. The other two are held to lr a hundred
times smaller by the steepest places, where lr·g² is too large, and lose runs to them even so.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from figures.descents import sweep
from figures.paths import draw_paths, how
from steppe._shared.pictures import new_figure
from steppe.play import SweepResult, draw_starts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_OPTIMIZERS = ("adam", "adam+warmup", "invadam", "dualadam")
_RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0, 10.0, 30.0)
# Landscapes, and how far from the origin starts are drawn in each coordinate.
_REACH = {"six-hump-camel": 1.5, "beale": 1.5, "levy": 10.0}


def measure(
    *,
    steps: int = 500,
    starts: int = 40,
    rates: tuple[float, ...] = _RATES,
    reach: Mapping[str, float] = _REACH,
) -> dict[str, Any]:
    """Descend on each landscape from random starts, at every learning rate."""
    return {
        name: sweep(
            name,
            optimizers=_OPTIMIZERS,
            rates=rates,
            starts=draw_starts([(-away, away)] * 2, starts),
            steps=steps,
            shown=8,
        )
        for name, away in reach.items()
    }


def draw(data: Mapping[str, Any]) -> "Figure":
    """Draw a row of panels for each landscape, every optimizer at its best learning rate."""
    results = {name: SweepResult.from_dict(found["play"]) for name, found in data.items()}
    name, first = next(iter(results.items()))
    figure = new_figure(how(data[name], first), (13.5, 4.1 * len(results)))
    parts = figure.subfigures(len(results), 1, squeeze=False)[:, 0]
    for part, (name, result) in zip(parts, results.items(), strict=True):
        part.suptitle(name, x=0.01, ha="left", fontsize=11)
        draw_paths(part, result)
    return figure
