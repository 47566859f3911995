"""Why InvAdam leaves the sharp minimum soonest: a sharp minimum, a flat one, the saddle between.

Claim (DualAdam, Shi et al. 2026, arXiv 2603.07122; the theory is that of Xie et al., arXiv
2002.03495 and 2006.15815): gradient noise is strong where the loss is sharp, C = |H|/B. A method
that multiplies by its size makes the sharp minimum hotter still than SGD does, one that divides by
it makes it cooler, so InvAdam leaves it soonest, compared with the flat one.

Came out: as claimed, where noise and saddle are as the theory assumes. Fed with such noise, the
real optimizers have the theory's preconditioners. How much sooner the minimum nine times as sharp
is left hangs on the saddle, too, because most of a sharp well's barrier is climbed at the saddle's
curvature: at 3, as drawn, the exponent of the escape time is 0.58 of the flat minimum's for Adam,
0.33 for SGD and 0.19 for InvAdam; at 1 it is about 0.9 for all; and beside a saddle flatter than
both minima the order is reversed. DualAdam at α = 0.5 is Adam here, to 3 %, because this noise,
like that of most networks, is below 1 in size; only beyond does its inverse part lead.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

import steppe
from steppe._shared.palette import COLOURS, line_style
from steppe._shared.pictures import new_figure, style_axes
from steppe.functions import sharp_flat
from steppe.theory import escape_time, path_coefficient

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BATCH = 100.0
_DRAWS = 20
_ALPHA = 0.5
_DUAL = f"DualAdam, α = {_ALPHA:g}"
_OPTIMIZERS: dict[str, Callable[[list[Tensor]], Optimizer]] = {
    "Adam": lambda params: torch.optim.Adam(params, betas=(0.0, 0.999)),
    "SGD": lambda params: torch.optim.SGD(params, lr=1.0),
    "InvAdam": lambda params: steppe.InvAdam(params, betas=(0.0, 0.999)),
    _DUAL: lambda params: steppe.DualAdam(
        params, betas=(0.0, 0.999), switch_rate=(1 - _ALPHA) / _DRAWS
    ),
}
_METHODS = {
    "Adam": ("adam", None),
    "SGD": ("sgd", None),
    "InvAdam": ("invadam", None),
    _DUAL: ("dualadam", _ALPHA),
}


def measure(*, sharpness: float = 9.0, saddle: float = 3.0, points: int = 600) -> dict[str, Any]:
    """Take the function, the optimizers' temperatures along it, and the theory's exponents."""
    function = sharp_flat(sharpness=sharpness, saddle=saddle)
    ((low, high),) = function.bounds
    x = torch.linspace(low, high, points, dtype=torch.float64)[:, None]
    curvature = function.hessian(x)[:, 0, 0]
    noise = curvature.abs() / _BATCH
    saddles = np.geomspace(0.1, 100, 61).tolist()
    return {
        "x": x[:, 0],
        "value": function(x),
        "places": {
            "flat": function.flat.point[0],
            "sharp": function.sharp.point[0],
            "saddle": function.top,
        },
        "curvatures": {"flat": function.flatness, "sharp": sharpness, "saddle": -saddle},
        "barrier": function.barrier,
        "batch_size": _BATCH,
        # T = lr·P·C/2, see steppe.theory.escape_time; lr cancels where it is compared.
        "temperature": {
            name: preconditioner(build, noise) * noise / 2 for name, build in _OPTIMIZERS.items()
        },
        "saddles": saddles,
        # Of the sharp minimum over that of the flat one, by the saddle's curvature.
        "exponents": {
            name: [_ratio(sharpness, other, *method) for other in saddles]
            for name, method in _METHODS.items()
        },
    }


def preconditioner(build: Callable[[list[Tensor]], Optimizer], noise: Tensor) -> Tensor:
    """Feed an optimizer with noise of these variances; return its last step over the gradient."""
    p = torch.zeros_like(noise, requires_grad=True)
    optimizer = build([p])
    generator = torch.Generator().manual_seed(0)
    for _ in range(_DRAWS):
        sign = torch.randint(2, noise.shape, generator=generator, dtype=noise.dtype) * 2 - 1
        p.grad = gradient = noise.sqrt() * sign
        before = p.detach().clone()
        optimizer.step()
    lr: float = optimizer.param_groups[0]["lr"]
    return (before - p.detach()) / gradient / lr


def _ratio(sharpness: float, saddle: float, method: str, alpha: float | None) -> float:
    sharp, flat = (
        escape_time(
            method,
            lr=1e-3,
            batch_size=_BATCH,
            barrier=1.0,
            h_min=h_min,
            h_saddle=saddle,
            s=path_coefficient(h_min, saddle),
            alpha=alpha,
        ).exponent
        for h_min in (sharpness, 1.0)
    )
    return sharp / flat


def draw(data: Mapping[str, Any]) -> "Figure":
    """Draw the function, how hot each method makes it, and what that does to the exponents."""
    figure = new_figure("A sharp minimum, a flat one, and the saddle between", (14, 5))
    curve, heat, exponents = figure.subplots(1, 3)
    x = np.array(data["x"])
    _draw_function(curve, data, x)
    for index, (name, values) in enumerate(data["temperature"].items()):
        style, values = line_style(index), np.array(values)
        flat = values[np.searchsorted(x, data["places"]["flat"])]
        for axes, across, heights in (
            (heat, x, values / flat),
            (exponents, data["saddles"], data["exponents"][name]),
        ):
            axes.plot(across, heights, style.dash, color=style.colour, lw=2.2, label=name)
    style_axes(heat, "temperature lr·P·C/2, relative to the flat minimum", grid="both")
    heat.set(xlabel="x", yscale="log", yticks=(1, 2, 5, 10, 20), yticklabels=(1, 2, 5, 10, 20))
    exponents.axvline(-data["curvatures"]["saddle"], color="black", lw=0.8, ls=":")
    exponents.axhline(1, color="black", lw=0.8)
    style_axes(exponents, "exponent of the time to leave: sharp / flat", grid="both")
    exponents.set(xscale="log", xlabel="|curvature| of the saddle; dotted: as drawn on the left")
    exponents.set_ylim(0, None)
    figure.legend(*heat.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def _draw_function(axes: "Axes", data: Mapping[str, Any], x: Any) -> None:
    axes.plot(x, data["value"], color="black", lw=2)
    labels = {"flat": ("flat", -0.24), "sharp": ("sharp", -0.24), "saddle": ("saddle", 0.1)}
    for which, (word, shift) in labels.items():
        position, curvature = data["places"][which], data["curvatures"][which]
        height = data["barrier"] if which == "saddle" else 0.0
        axes.plot([position], [height], "o", color=COLOURS[3], ms=7, zorder=3)
        text = f"{word}, curvature {curvature:g}".replace("-", "−")
        axes.annotate(text, (position, height + shift), ha="center", fontsize=9)
    style_axes(axes, f"loss; noise of variance |curvature|/{data['batch_size']:g}")
    axes.set(xlabel="x", ylabel="loss", ylim=(-0.4, 2.1))
