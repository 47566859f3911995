"""How long a minimum holds SGD, Adam and InvAdam, by its sharpness: theory and simulation.

Claim (Xie et al., ICLR 2021, arXiv 2002.03495, and ICML 2022, arXiv 2006.15815; for InvAdam the
DualAdam paper, Shi et al. 2026, arXiv 2603.07122): log τ falls with the sharpness H as H^−½ for
Adam, as 1/H for SGD and as H^−3/2 for InvAdam, so that InvAdam leaves sharp minima soonest.

Came out: as published. Simulated times are within two standard errors of the theory in 17 of 18
wells. The slopes of log(τ/prefactor) over the exponent are 0.98 ± 0.04 for Adam, 1.09 ± 0.05 for
SGD and 0.98 ± 0.06 for InvAdam (1 in theory; with more walkers, benchmarks/escape.py, 0.988 to
1.024). From a well 1.75 times as sharp as the flattest, Adam is out in 0.099 of the time that it
takes from the flattest, SGD in 0.019 and InvAdam in 0.0044. So it is where the noise is |h|/B,
v follows it at once, and the saddle is sharper in the same measure: here its curvature is always
the minimum's. Over one shared saddle the order may turn, see docs/escape.md.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from steppe._shared.palette import COLOURS, GREY
from steppe._shared.pictures import new_figure, style_axes
from steppe.theory import (
    Well,
    agreement,
    escape_time,
    limit_well,
    path_coefficient,
    simulate_escape,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LABELS = {"adam": "Adam", "sgd": "SGD", "invadam": "InvAdam"}
_LOOKS = dict(zip(_LABELS, zip(COLOURS, "os^", ("-", "--", "-."), strict=False), strict=True))
_SHARPNESSES = (1.0, 1.1, 1.2, 1.32, 1.5, 1.75)
_FLATTEST_TERM = 4.0
_SHOWN = "adam"


def measure(
    *, steps: float = 8e7, sharpnesses: tuple[float, ...] = _SHARPNESSES, seed: int = 0
) -> dict[str, Any]:
    """Let walkers escape from wells of several sharpnesses, for about ``steps`` steps in each.

    The saddle is as sharp as the minimum, the barrier the same. Learning rates are such that the
    flattest well has the same exponent for each method.
    """
    # Walkers of the same seed would draw the same noise for every method.
    seeds = range(seed, seed + len(_LABELS) * len(sharpnesses), len(sharpnesses))
    return {
        method: _sweep(method, steps, sharpnesses, first_seed)
        for method, first_seed in zip(_LABELS, seeds, strict=True)
    }


def _sweep(method: str, steps: float, sharpnesses: tuple[float, ...], seed: int) -> dict[str, Any]:
    flattest = limit_well(method, _FLATTEST_TERM)
    wells = [_sharper(flattest, factor) for factor in sharpnesses]
    s = path_coefficient(1.0, 1.0)
    theory = [escape_time(method, **well, s=s) for well in wells]
    simulations = [
        simulate_escape(
            method, **well, walkers=min(max(10, round(steps / one.steps)), 2000), seed=seed + number
        )
        for number, (well, one) in enumerate(zip(wells, theory, strict=True))
    ]
    lines = [
        escape_time(method, **_sharper(flattest, factor), s=s)
        for factor in np.geomspace(min(sharpnesses), max(sharpnesses), 40)
    ]
    valid = [(a, b) for a, b in zip(theory, simulations, strict=True) if a.valid]
    last = simulations[-1]
    return {
        "sharpness": list(sharpnesses),
        "exponent": [one.exponent for one in theory],
        "prefactor": [one.prefactor for one in theory],
        "valid": [one.valid for one in theory],
        "theory": [one.steps for one in theory],
        "mean": [one.mean for one in simulations],
        "standard_error": [one.standard_error for one in simulations],
        "walkers": [one.walkers for one in simulations],
        "line": [one.steps for one in lines],
        "fit": agreement(*zip(*valid, strict=True)).to_dict() if len(valid) > 1 else None,
        "survival_times": last.survival_times.tolist(),
        "survival": last.survival.tolist(),
    }


def _sharper(well: Well, factor: float) -> Well:
    found = well.copy()
    found["h_min"] *= factor
    found["h_saddle"] *= factor
    return found


def draw(data: Mapping[str, Any]) -> "Figure":
    """Draw times by sharpness, the fit over the exponent, who stays, and how right it is."""
    figure = new_figure("How long a minimum holds an optimizer, by its sharpness", (11.0, 8.4))
    times, fit, survival, ratio = figure.subplots(2, 2).flat
    _draw_times(times, data)
    _draw_fit(fit, data)
    _draw_survival(survival, data[_SHOWN])
    _draw_ratios(ratio, data)
    return figure


def _draw_times(axes: "Axes", data: Mapping[str, Any]) -> None:
    style_axes(axes, "Mean time, equal in the flattest well (lines: theory)", "both")
    for method, found in data.items():
        colour, marker, dashes = _LOOKS[method]
        sharpness, line = np.array(found["sharpness"]), found["line"]
        grid = np.geomspace(sharpness.min(), sharpness.max(), len(line))
        axes.plot(grid, line, dashes, color=colour, lw=1.6, label=_LABELS[method])
        mean, error = np.array(found["mean"]), np.array(found["standard_error"])
        _draw_points(axes, found, sharpness, mean, error, colour, marker)
    flattest = data[_SHOWN]["theory"][0]
    axes.set_xscale("log")
    axes.set_yscale("log")
    beside = axes.secondary_yaxis(
        "right", functions=(lambda tau: tau / flattest, lambda share: share * flattest)
    )
    beside.set_ylabel("τ / τ of the flattest")
    _mark_sharpness(axes, data)
    axes.set_ylabel("mean escape time τ, steps")
    axes.legend(frameon=False, loc="lower left")


def _draw_ratios(axes: "Axes", data: Mapping[str, Any]) -> None:
    style_axes(axes, "Simulated over predicted time", "both")
    axes.axhline(1.0, color=GREY, lw=1.2)
    for number, (method, found) in enumerate(data.items()):
        colour, marker, _ = _LOOKS[method]
        theory = np.array(found["theory"])
        # Beside one another, so that no marker hides another.
        x = np.array(found["sharpness"]) * 1.012 ** (number - 1)
        ratios, errors = (np.array(found[name]) / theory for name in ("mean", "standard_error"))
        _draw_points(axes, found, x, ratios, errors, colour, marker)
        axes.plot([], [], marker, color=colour, label=_LABELS[method])
    axes.set_xscale("log")
    _mark_sharpness(axes, data)
    axes.set_ylim(0.5, 1.5)
    axes.set_ylabel("simulated τ / predicted τ, ± 1 standard error")
    axes.legend(frameon=False, loc="lower left", ncols=3)


def _mark_sharpness(axes: "Axes", data: Mapping[str, Any]) -> None:
    ticks = data[_SHOWN]["sharpness"]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    axes.set_xlabel("sharpness of the minimum, in that of the flattest")


def _draw_fit(axes: "Axes", data: Mapping[str, Any]) -> None:
    style_axes(axes, "Simulated times over the exponent", "both")
    ends = [min(min(x["exponent"]) for x in data.values()), 2.0 * _FLATTEST_TERM]
    axes.plot(ends, ends, color=GREY, lw=1.2, label="slope 1")
    for method, found in data.items():
        colour, marker, _ = _LOOKS[method]
        exponent, mean = np.array(found["exponent"]), np.array(found["mean"])
        fit = found["fit"]
        label = _LABELS[method] + (
            f": slope {fit['slope']:.2f} ± {fit['slope_standard_error']:.2f}" if fit else ""
        )
        axes.plot([], [], marker, color=colour, label=label)
        error = np.array(found["standard_error"]) / mean
        _draw_points(axes, found, exponent, np.log(mean / found["prefactor"]), error, colour,
                     marker)  # fmt: skip
    axes.plot([], [], "o", color="0.4", mfc="white", label="outside the limits, not fitted")
    axes.set_xlabel("exponent E")
    axes.set_ylabel("log(simulated τ / prefactor)")
    axes.legend(frameon=False, loc="upper left")


def _draw_points(
    axes: "Axes", found: Mapping[str, Any], x: Any, y: Any, error: Any, colour: str, marker: str
) -> None:
    for is_valid in (True, False):
        chosen = np.array(found["valid"]) == is_valid
        axes.errorbar(
            x[chosen], y[chosen], error[chosen], fmt=marker, color=colour, ms=6, capsize=3, lw=1.2,
            mfc=colour if is_valid else "white", zorder=3,
        )  # fmt: skip


def _draw_survival(axes: "Axes", found: Mapping[str, Any]) -> None:
    colour, _, _ = _LOOKS[_SHOWN]
    count, factor = found["walkers"][-1], found["sharpness"][-1]
    style_axes(
        axes, f"Still in the well: {_LABELS[_SHOWN]}, sharpness {factor:g}, {count} walkers", "both"
    )
    tau = found["theory"][-1]
    t, share = np.array(found["survival_times"]), np.array(found["survival"])
    axes.step(
        np.append(0.0, t) / tau, np.append(1.0, share), where="post", color=colour,
        label="simulated",
    )  # fmt: skip
    last = float(t[-1]) / tau
    axes.plot([0.0, last], [1.0, math.exp(-last)], "--", color="black", lw=1.2,
              label="exponential, τ of the theory")  # fmt: skip
    axes.set_yscale("log")
    axes.set_ylim(0.5 / count, 1.4)
    axes.set_xlabel("time, in the theory's τ")
    axes.set_ylabel("share of the walkers")
    axes.legend(frameon=False)
