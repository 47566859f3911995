"""How fast critical momenta converge on quadratics.

Claim: critical momenta converge over a wide range of condition numbers (Malviya et al., arXiv
2307.09638, the section on convergence), shown there as 1 − ρ* against κ with β optimised (solid)
and β = 0.9 (dashed).
Came out: they converge at every κ to 1e6, at the right settings, and more slowly than heavy ball.
With five slots 1 − ρ* at κ = 100 is 0.079 with the best β and 0.0070 at β = 0.9, where heavy ball
has 0.18 and 0.051; at κ = 1e6 it is 1.3e-5 and 7.9e-7 against 2.0e-3 and 3.8e-5. So 1 − ρ* goes
as 1/κ, like plain gradient descent's, also with the best β, which is 0 for small κ and 0.55 for
large ones; heavy ball's goes as 1/√κ. Only below κ = 2 are critical momenta the faster at β = 0.9.
The real SGDCM with replacement="fifo" decays as predicted, to 0.3 % of 1 − ρ and mostly to 0.01 %.
At the same settings the priority buffer has 0.16 to 1 times that 1 − ρ with λ = 0.7, and 0.02 to
1.4 times with λ = 0.99: where gradients fall faster than keys old momenta stay, and no run with
λ = 0.99 is faster than 1 − λ.
"""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

import steppe
from steppe._shared.palette import COLOURS, GREY
from steppe._shared.pictures import new_figure, style_axes
from steppe._shared.progress import progress
from steppe.theory import OptimalRate, optimal_rate, rate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_METHODS = {"heavy-ball": "heavy ball", "critical-momenta": "critical momenta"}
# Between these the distance is fitted: float64 goes on to 1e±308.
_FARTHEST, _NEAREST = 1e250, 1e-250


def measure(
    *,
    condition_numbers: Sequence[float] = tuple(np.geomspace(1, 1e6, 25)),
    measured: Sequence[float] = (3, 10, 30, 100, 300, 1000),
    momentum: float = 0.9,
    capacity: int = 5,
    priority_decays: Sequence[float] = (0.7, 0.99),
    curvatures: int = 8,
    steps: int = 4000,
) -> dict[str, Any]:
    """Compute the best rates, and run SGDCM at the settings that critical momenta's theory gives.

    Parameters
    ----------
    condition_numbers : sequence of float
        κ of the curves.
    measured : sequence of float
        κ of the runs.
    momentum : float
        The β that stands beside the optimised one.
    capacity : int
        Slots.
    priority_decays : sequence of float
        λ of the runs with a priority buffer.
    curvatures : int
        Dimensions of the quadratics of the runs, log-spaced from 1 to κ.
    steps : int
        Of a run.
    """
    curves = []
    with progress("optimal rates", 2 * len(_METHODS)) as advance:
        for method, beta in product(_METHODS, (None, momentum)):
            found = _optima(method, condition_numbers, capacity, beta)
            gaps = [1 - best.rate for best in found]
            curves.append({"method": method, "momentum": beta, "gaps": gaps})
            advance(1)
    buffers: list[dict[str, Any]] = [{"replacement": "fifo"}]
    buffers += [{"replacement": "priority", "priority_decay": decay} for decay in priority_decays]
    spectra = [np.geomspace(1, kappa, curvatures) for kappa in measured]
    runs = []
    with progress("runs of SGDCM", 2 * len(buffers)) as advance:
        for beta, buffer in product((None, momentum), buffers):
            found = _optima("critical-momenta", measured, capacity, beta)
            rates = [_rate(h, best, capacity) for h, best in zip(spectra, found, strict=True)]
            distances = decay(spectra, found, steps, capacity=capacity, **buffer)
            runs.append(
                {
                    **buffer,
                    "momentum": beta,
                    "gaps": [1 - fitted_rate(run) for run in distances.T],
                    "predicted": [1 - each for each in rates],
                }
            )
            advance(1)
    return {
        "condition_numbers": [float(kappa) for kappa in condition_numbers],
        "curves": curves,
        "measured": [float(kappa) for kappa in measured],
        "momentum": momentum,
        "capacity": capacity,
        "steps": steps,
        "runs": runs,
    }


def decay(
    spectra: Sequence[NDArray[np.float64]],
    settings: Sequence[OptimalRate],
    steps: int,
    **buffer: Any,
) -> NDArray[np.float64]:
    """Run SGDCM on quadratics side by side, and return their distances from the minimum.

    Parameters
    ----------
    spectra : sequence of ndarray
        The curvatures of each quadratic, a run of its own.
    settings : sequence of OptimalRate
        The lr and β of each.
    steps : int
        Of all.
    **buffer
        SGDCM's arguments about its buffer.

    Returns
    -------
    ndarray, shape (steps, quadratics)
    """
    h = [torch.from_numpy(spectrum) for spectrum in spectra]
    points = [torch.ones_like(each) for each in h]
    groups: list[dict[str, Any]] = [
        {"params": [p], "lr": best.lr, "momentum": best.momentum, "dampening": best.momentum}
        for p, best in zip(points, settings, strict=True)
    ]
    optimizer = steppe.SGDCM(groups, scope="tensor", **buffer)
    distances = np.empty((steps, len(points)))
    for step in range(steps):
        for point, curvature in zip(points, h, strict=True):
            point.grad = curvature * point
        optimizer.step()
        distances[step] = [float(point.norm()) for point in points]
    return distances


def fitted_rate(distances: NDArray[np.float64]) -> float:
    """Return the factor a step, from a straight line through the log of the distances.

    A first quarter is left out, in which the buffer fills and faster parts die away; and the rest
    from where the distance leaves float64's range.
    """
    inside = (distances > _NEAREST) & (distances < _FARTHEST)
    end = len(distances) if inside.all() else int(inside.argmin())
    steps = np.arange(end // 4, end)
    return float(np.exp(np.polyfit(steps, np.log(distances[steps]), 1)[0]))


def draw(data: Mapping[str, Any]) -> "Figure":
    """Draw 1 − ρ* against κ, and beside it what SGDCM reached of it."""
    figure = new_figure("Convergence on quadratics, with critical momenta and without", (11.0, 5.6))
    theory, runs = figure.subplots(1, 2)
    _draw_theory(theory, data)
    _draw_runs(runs, data)
    return figure


def _draw_theory(axes: "Axes", data: Mapping[str, Any]) -> None:
    colours = dict(zip(_METHODS, (COLOURS[0], COLOURS[3]), strict=True))
    for curve in data["curves"]:
        axes.plot(
            data["condition_numbers"],
            curve["gaps"],
            color=colours[curve["method"]],
            ls=_dashes(curve),
            label=f"{_METHODS[curve['method']]}, {_beta(curve)}",
        )
    for run in data["runs"]:
        if run["replacement"] == "fifo":
            axes.plot(
                data["measured"],
                np.array(run["gaps"], dtype=float),
                "o" if run["momentum"] is None else "s",
                color=colours["critical-momenta"],
                mfc="white",
                label=f"SGDCM, fifo, {_beta(run)}",
            )
    style_axes(axes, f"Best worst-case rate, {data['capacity']} slots (fifo)", grid="both")
    axes.set(xscale="log", yscale="log", xlabel="condition number κ", ylabel="1 − ρ*, per step")
    _legend(axes)


def _draw_runs(axes: "Axes", data: Mapping[str, Any]) -> None:
    looks = zip((COLOURS[3], COLOURS[2], COLOURS[4], COLOURS[5]), "o^vD", strict=True)
    by_name: dict[str, tuple[str, str]] = {}
    for run in data["runs"]:
        name = _name(run)
        if name not in by_name:
            by_name[name] = next(looks)
        colour, marker = by_name[name]
        shares = np.array(run["gaps"], dtype=float) / np.array(run["predicted"])
        axes.plot(
            data["measured"],
            shares,
            color=colour,
            marker=marker,
            mfc="white",
            ls=_dashes(run),
            label=f"{name}, {_beta(run)}",
        )
    axes.axhline(1.0, color=GREY, lw=0.8, zorder=0)
    style_axes(axes, "SGDCM at those settings: measured share of fifo's 1 − ρ", grid="both")
    axes.set(xscale="log", yscale="log", xlabel="condition number κ", ylabel="measured / theory")
    _legend(axes)


def _legend(axes: "Axes") -> None:
    axes.legend(
        frameon=False, fontsize=8.5, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.14)
    )


def _optima(
    method: str, condition_numbers: Sequence[float], capacity: int, momentum: float | None
) -> list[OptimalRate]:
    slots = capacity if method == "critical-momenta" else None
    return [
        optimal_rate(method, kappa, capacity=slots, momentum=momentum)
        for kappa in condition_numbers
    ]


def _rate(spectrum: NDArray[np.float64], best: OptimalRate, capacity: int) -> float:
    ages = range(1, capacity + 1)
    found = rate("critical-momenta", spectrum, lr=best.lr, momentum=best.momentum, ages=ages)
    return float(found.max())


def _name(run: Mapping[str, Any]) -> str:
    return f"priority, λ = {run['priority_decay']:g}" if "priority_decay" in run else "fifo"


def _beta(line: Mapping[str, Any]) -> str:
    return "best β" if line["momentum"] is None else f"β = {line['momentum']:g}"


def _dashes(line: Mapping[str, Any]) -> str:
    return "-" if line["momentum"] is None else "--"
