"""How long DualAdam's step is, by the second moment of the gradient.

Claim (DualAdam, Shi et al. 2026, arXiv 2603.07122): Adam divides the momentum by √v̂, so steps are
short where gradients are large, as in sharp minima; InvAdam multiplies by it, so there they are
long; DualAdam does both, and its weight α moves from the second to the first.

Came out: as the formula says, and with it the condition that decides whether DualAdam differs from
Adam at all. The inverse part leads only where v̂ > (1 − α)/α: above a gradient of 1 at α = 0.5, and
above 10 at α = 0.01. Left of that a step is Adam's times 1 − α, which is a warm-up.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

import steppe
from steppe._shared.palette import COLOURS
from steppe._shared.pictures import new_figure, style_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STEP = 2  # of the step that is measured; the first one makes the state


def measure(
    *, alphas: tuple[float, ...] = (0.9, 0.5, 0.1, 0.01), points: int = 121
) -> dict[str, Any]:
    """Let the optimizers take a step from a momentum and a second moment that are known."""
    root = torch.logspace(-3, 3, points, dtype=torch.float64)
    builders: dict[str, Callable[[list[Tensor]], Optimizer]] = {
        "Adam": partial(torch.optim.Adam, lr=1.0),
        "InvAdam": partial(steppe.InvAdam, lr=1.0),
    }
    for alpha in alphas:
        switch_rate = (1 - alpha) / _STEP
        builders[f"DualAdam, α = {alpha:g}"] = partial(
            steppe.DualAdam, lr=1.0, switch_rate=switch_rate
        )
    return {
        "root": root,
        "alphas": alphas,
        "given": {name: step_length(root * 0 + 1, root, build) for name, build in builders.items()},
        "steady": {name: step_length(root, root, build) for name, build in builders.items()},
    }


def step_length(
    momentum: Tensor, root: Tensor, build: Callable[[list[Tensor]], Optimizer]
) -> Tensor:
    """Return |Δp| of the step at which m̂ is ``momentum`` and √v̂ is ``root``, at lr = 1."""
    p = torch.zeros_like(root, requires_grad=True)
    optimizer = build([p])
    p.grad = torch.zeros_like(p)
    optimizer.step()
    before = p.detach().clone()
    beta1, beta2 = optimizer.param_groups[0]["betas"]
    state = optimizer.state[p]
    # A gradient of zero scales both by β; their corrections are those of this step.
    state["exp_avg"].copy_(momentum * (1 - beta1**_STEP) / beta1)
    state["exp_avg_sq"].copy_(root**2 * (1 - beta2**_STEP) / beta2)
    optimizer.step()
    return (p.detach() - before).abs()


def draw(data: Mapping[str, Any]) -> "Figure":
    """Draw both panels: one momentum for all second moments, and a steady gradient."""
    figure = new_figure("A step of DualAdam, by the second moment of the gradient", (12, 5))
    given, steady = figure.subplots(1, 2)
    for axes, lengths in ((given, data["given"]), (steady, data["steady"])):
        _draw_lengths(axes, data["root"], lengths)
        axes.set(xscale="log", yscale="log", xlabel="√v̂: root mean square of the gradient")
    for alpha in data["alphas"]:
        root = ((1 - alpha) / alpha) ** 0.5
        length = (1 - alpha) / root + alpha * root
        given.plot([root], [length], "o", color="black", ms=5, zorder=5)
    style_axes(given, "momentum m̂ = 1, whatever the second moment", grid="both")
    given.set_ylabel("|Δp| / lr")
    given.set_ylim(1e-3, 1e3)
    given.annotate(
        "● the parts are equal:\n   √v̂ = √((1 − α)/α)",
        xy=(0.5, 0.97),
        xycoords="axes fraction",
        ha="center",
        va="top",
        fontsize=9,
    )
    style_axes(steady, "steady gradient, m̂ = √v̂", grid="both")
    steady.set_ylim(1e-3, 1e3)
    figure.legend(*given.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def _draw_lengths(axes: "Axes", root: Any, lengths: Mapping[str, Any]) -> None:
    dashes = ("-", "--", "-.", ":")
    for index, (name, values) in enumerate(lengths.items()):
        mixed = index >= 2
        axes.plot(
            np.asarray(root, dtype=float),
            np.asarray(values, dtype=float),
            dashes[(index - 2) % len(dashes)] if mixed else "-",
            color=COLOURS[2 + (index - 2) % 4] if mixed else COLOURS[(0, 3)[index]],
            lw=1.6 if mixed else 3,
            alpha=1.0 if mixed else 0.55,
            label=name,
        )
