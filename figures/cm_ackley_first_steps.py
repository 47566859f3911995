"""What a buffer holds in the first ten steps on Ackley's function: gradients, or momenta.

Claim (critical momenta, Malviya et al. 2024, arXiv 2307.09638): remembered gradients point to and
fro across the dents and cancel in the sum, so Adam+CG moves little in its first steps; momenta are
averages already, agree with each other, and carry Adam+CM out.

Came out: the first half. The sum of five remembered gradients is 0.59 as long as the gradients
together where it is shortest, after six steps; that of momenta 0.72, after seven. But Adam+CG does
not move less for it: both go farther than Adam, and after ten steps Adam+CG is farthest from its
start, 0.87 against Adam+CM's 0.67 and Adam's 0.46.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from figures.seeds import draw_intervals, intervals
from steppe._shared.messages import plural
from steppe._shared.palette import COLOURS, line_style
from steppe._shared.pictures import new_figure, style_axes
from steppe._shared.recipes import find_recipe
from steppe.functions import ackley
from steppe.play import draw_starts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_OPTIMIZERS = ("adam", "adamcg", "adamcm")
_CAPACITY = 5  # for both, so that sums have equally many terms
_WINDOW = 1.6


def measure(*, steps: int = 10, starts: int = 100, lr: float = 0.1) -> dict[str, Any]:
    """Step from random starts; look into the buffers after every step."""
    begin = draw_starts(ackley().bounds, starts)
    return {
        "steps": steps,
        "starts": starts,
        "lr": lr,
        "capacity": _CAPACITY,
        "optimizers": {name: _first_steps(name, begin, steps, lr) for name in _OPTIMIZERS},
    }


def _first_steps(name: str, begin: Tensor, steps: int, lr: float) -> dict[str, Any]:
    function, recipe = ackley(), find_recipe(name)
    parameters = [start.clone().requires_grad_() for start in begin]
    settings: dict[str, Any] = {"lr": lr, "scope": "tensor", "capacity": _CAPACITY}
    optimizer = recipe.build(parameters, settings, steps)
    points, stored, coherence = [begin], [], []
    for _ in range(steps):
        gradients = function.gradient(torch.stack([p.detach() for p in parameters]))
        for p, gradient in zip(parameters, gradients, strict=True):
            p.grad = gradient
        optimizer.step()
        points.append(torch.stack([p.detach().clone() for p in parameters]))
        if name != "adam":
            slots = [_slots(optimizer, p) for p in parameters]
            stored.append([each[-1].tolist() for each in slots])
            coherence.append([_coherence(each) for each in slots])
    paths = torch.stack(points, 1)
    moved = (paths - paths[:, :1]).norm(dim=2)
    return {
        "path": paths[0],
        "stored": [each[0] for each in stored],
        "moved": intervals(dict(enumerate(moved.tolist()))),
        "coherence": intervals(dict(enumerate(zip(*coherence, strict=True)))),
    }


def _slots(optimizer: Optimizer, p: Tensor) -> Tensor:
    """Return what is remembered, the oldest first."""
    state = optimizer.state[p]
    births = state["slot_births"].tolist()
    filled = sorted((birth, slot) for slot, birth in enumerate(births) if np.isfinite(birth))
    return torch.stack([state[f"slot_{slot}"] for _, slot in filled])


def _coherence(slots: Tensor) -> float:
    """Return ‖Σ slots‖ / Σ ‖slot‖: 1 where all point the same way, 0 where they cancel."""
    return float(slots.sum(0).norm() / slots.norm(dim=1).sum())


def draw(data: Mapping[str, Any]) -> "Figure":
    """Draw one start's steps with what was remembered at each, and means over all starts."""
    figure = new_figure(
        f"Ackley, the first {plural(data['steps'], 'step')} at lr {data['lr']:g}, "
        f"{plural(data['capacity'], 'slot')}",
        (15, 4.4),
    )
    *maps, coherence, moved = figure.subplots(1, 4, width_ratios=(1, 1, 1.1, 1.1))
    titles = {"adamcg": "remembers gradients", "adamcm": "remembers momenta"}
    for axes, (name, title) in zip(maps, titles.items(), strict=True):
        _draw_path(axes, data["optimizers"][name])
        style_axes(axes, f"{name} {title}")
        axes.grid(False)
    for index, (name, found) in enumerate(data["optimizers"].items()):
        if found["coherence"]["mean"]:
            draw_intervals(coherence, name, found["coherence"], line_style(index))
        draw_intervals(moved, name, found["moved"], line_style(index), first=0)
    mean = f"mean and 95 % interval over {plural(data['starts'], 'start')}"
    style_axes(coherence, "‖sum of slots‖ / sum of ‖slot‖")
    coherence.set(xlabel=f"step; {mean}", ylim=(0, 1.05))
    style_axes(moved, "distance from the start")
    moved.set(xlabel="step", ylim=(0, None))
    for axes in (coherence, moved):
        axes.legend(frameon=False)
    return figure


def _draw_path(axes: "Axes", found: Mapping[str, Any]) -> None:
    path, stored = np.array(found["path"]), np.array(found["stored"])
    middle = path.mean(0)
    span = [np.linspace(centre - _WINDOW, centre + _WINDOW, 121) for centre in middle]
    grid = np.stack(np.meshgrid(*span), -1)
    axes.contourf(*span, ackley()(torch.from_numpy(grid)).numpy(), 20, cmap="viridis", alpha=0.75)
    axes.plot(*path.T, "-o", color="white", ms=4, mec="black", mew=0.5, lw=1.2)
    axes.plot(*path[0], "s", color="white", mec="black", ms=8, label="one start")
    # The way that what was stored at each step pulls.
    axes.quiver(
        *path[:-1].T, *-stored.T, color=COLOURS[3], angles="xy", width=0.012, zorder=3,
        label="pull of what was stored",
    )  # fmt: skip
    axes.set(aspect="equal", xlabel="x", ylabel="y")
    axes.legend(loc="lower left", fontsize=8)
