"""Who leaves a sharp minimum for a flat one.

Claim: with critical momenta a run leaves sharp minima for flat ones, more often the sharper they
are, where Adam stays (Malviya et al., arXiv 2307.09638, the section on one-dimensional toy
functions).
Came out: so it is, and twice the step is not the reason; but critical gradients do it as well, and
with either many runs never come to rest. At lr 0.1 none of Adam's 120 runs leaves, nor of Adam's
at twice the lr; AdamCM leaves wells of curvature 30 or more from 96 % of the starts, and AdamCG
wells of 10 or more from all. Adam at four times the lr leaves wells of curvature 100, 300 and 1000
from 20, 65 and 100 %. At lr 0.2 AdamCM leaves from 99 % of all starts, AdamCG from all, Adam from
none, and Adam at twice the lr from 31 %. At 0.4 AdamCM and AdamCG go to and fro in a third of
their runs, 38 of 120.
At a constant lr most runs with a buffer that stay in the sharp basin keep swinging there, with no
noise to drive them, and many that left do so in the flat one: at lr 0.2 43 % of AdamCM's runs and
41 % of AdamCG's lie still at the end, of Adam's 79 %. On a quadratic the default buffer of five,
always replaced, is stable for lr·h up to 0.39, where heavy ball goes to 38
(:mod:`steppe.theory.quadratic`). At curvature 10 and lr 0.05 AdamCM swings with lr·h/√v̂ at 0.56,
past the one; Adam lies still at 2.4, well below the other.
"""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from steppe._shared.palette import COLOURS
from steppe._shared.pictures import new_figure, style_axes
from steppe._shared.progress import progress
from steppe._shared.recipes import find_recipe
from steppe.functions import SharpFlat, sharp_flat
from steppe.play import descend

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# What a run's last tenth may rise to, in barriers, if it is to count as settled.
_SETTLED = 0.01
# Ends the name of an optimizer that runs at twice the lr.
_DOUBLED = "+2lr"
_ENDS = {"stayed": "#DDDDDD", "left": COLOURS[2], "neither": COLOURS[3]}
_LOOKS = (
    (COLOURS[0], "o", "-"),
    (COLOURS[5], "s", ":"),
    (COLOURS[1], "^", "--"),
    (COLOURS[3], "v", "-"),
)


def measure(
    *,
    optimizers: Sequence[str] = ("adam", "adam+2lr", "adamcg", "adamcm"),
    lrs: Sequence[float] = (0.05, 0.1, 0.2, 0.4),
    sharpnesses: Sequence[float] = (3, 10, 30, 100, 300, 1000),
    starts: int = 20,
    steps: int = 600,
) -> dict[str, Any]:
    """Let every optimizer run from all over the sharp basin, without noise, at the same lr.

    Parameters
    ----------
    optimizers : sequence of str
        Their names; "+2lr" runs at twice the lr.
    lrs : sequence of float
        Learning rates, constant through a run.
    sharpnesses : sequence of float
        Curvatures at the sharp minimum; the flat one's is 1, and so are the barrier and its
        curvature.
    starts : int
        Evenly spaced over the sharp basin, up to where its outer wall is as high as the barrier.
    steps : int
        Of a run.
    """
    shares = (np.arange(starts) + 0.5) / starts
    grid = list(product(optimizers, lrs, sharpnesses))
    runs = []
    with progress("descents", len(grid)) as advance:
        for name, lr, sharpness in grid:
            ends, settled = _run(name, lr, sharp_flat(float(sharpness)), shares, steps)
            runs.append(
                {
                    "optimizer": name,
                    "lr": lr,
                    "sharpness": float(sharpness),
                    "ends": ends,
                    "settled": settled,
                }
            )
            advance(1)
    return {
        "optimizers": list(optimizers),
        "lrs": list(lrs),
        "sharpnesses": [float(sharpness) for sharpness in sharpnesses],
        "starts": shares.tolist(),
        "steps": steps,
        "runs": runs,
    }


def _run(
    name: str, lr: float, function: SharpFlat, shares: np.ndarray[Any, Any], steps: int
) -> tuple[list[str], list[bool]]:
    """Return where each start ended, and whether it lay still there."""
    recipe = find_recipe(name.removesuffix(_DOUBLED))
    wall = function.sharp.point[0] + (2 * function.barrier / function.sharpness) ** 0.5
    starts = torch.from_numpy(wall * shares)[:, None]
    settings = {"lr": 2 * lr if name.endswith(_DOUBLED) else lr}
    descent = descend(function, recipe, settings, starts, steps)
    tail = slice(-max(1, steps // 10), None)
    left = (descent.points[:, tail, 0] < function.top).all(1)
    stayed = (descent.points[:, tail, 0] > function.top).all(1)
    settled = descent.losses[:, tail].max(1) < _SETTLED * function.barrier
    return np.select([left, stayed], ["left", "stayed"], "neither").tolist(), settled.tolist()


def escape_ratios(data: Mapping[str, Any], optimizer: str, lr: float) -> list[float]:
    """Return the share of starts that ended in the flat basin, for each sharpness."""
    return [
        float(np.mean([end == "left" for end in run["ends"]])) for run in _runs(data, optimizer, lr)
    ]


def draw(data: Mapping[str, Any]) -> "Figure":
    """Draw where runs ended at one lr, and the escape ratios at each."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    columns = max(len(data["optimizers"]), len(data["lrs"]))
    figure = new_figure("Leaving a sharp minimum for a flat one", (3.0 * columns, 7.0))
    maps, ratios = figure.subplots(2, columns, sharey="row", squeeze=False)
    shown = data["lrs"][(len(data["lrs"]) - 1) // 2]
    for axes, optimizer in zip(maps, data["optimizers"], strict=False):
        _draw_map(axes, data, optimizer, shown)
    maps[0].set_ylabel("start: top = 0, outer wall = 1")
    for axes, lr in zip(ratios, data["lrs"], strict=False):
        _draw_ratios(axes, data, lr)
    ratios[0].set_ylabel("share that ended in the flat basin")
    for axes in (*maps[len(data["optimizers"]) :], *ratios[len(data["lrs"]) :]):
        axes.set_axis_off()
    labels = {"stayed": "stayed in the sharp basin", "left": "left it for the flat one"}
    handles: list[Any] = [Patch(color=_ENDS[end], label=labels[end]) for end in labels]
    handles.append(Patch(color=_ENDS["neither"], label="goes to and fro, or diverged"))
    still = f"still moving: over {_SETTLED:.0%} of the barrier in the last tenth"
    handles.append(Line2D([], [], marker="o", ls="", color="black", ms=3, label=still))
    maps[-1].figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    ratios[0].legend(frameon=False, fontsize=9, loc="upper left")
    return figure


def _draw_map(axes: "Axes", data: Mapping[str, Any], optimizer: str, lr: float) -> None:
    from matplotlib.colors import ListedColormap

    runs = _runs(data, optimizer, lr)
    codes = np.array([[list(_ENDS).index(end) for end in run["ends"]] for run in runs]).T
    moving = ~np.array([run["settled"] for run in runs]).T
    positions = range(len(runs))
    axes.pcolormesh(
        positions,
        data["starts"],
        codes,
        cmap=ListedColormap(list(_ENDS.values())),
        vmin=-0.5,
        vmax=len(_ENDS) - 0.5,
        edgecolors="white",
        linewidth=0.6,
    )
    rows, columns = np.nonzero(moving)
    axes.plot(columns, np.array(data["starts"])[rows], "o", color="black", ms=2)
    style_axes(axes, f"{optimizer}, lr {lr:g}" + (" × 2" if optimizer.endswith(_DOUBLED) else ""))
    axes.grid(False)
    axes.set_xticks(positions, [f"{run['sharpness']:g}" for run in runs])
    axes.set_xlabel("sharpness")


def _draw_ratios(axes: "Axes", data: Mapping[str, Any], lr: float) -> None:
    for optimizer, (colour, marker, dashes) in zip(data["optimizers"], _LOOKS, strict=False):
        axes.plot(
            data["sharpnesses"],
            escape_ratios(data, optimizer, lr),
            color=colour,
            marker=marker,
            ls=dashes,
            mfc="white",
            label=optimizer,
        )
    style_axes(axes, f"lr {lr:g}", grid="both")
    axes.set(xscale="log", xlabel="sharpness", ylim=(-0.04, 1.04))


def _runs(data: Mapping[str, Any], optimizer: str, lr: float) -> list[Mapping[str, Any]]:
    return [run for run in data["runs"] if run["optimizer"] == optimizer and run["lr"] == lr]
