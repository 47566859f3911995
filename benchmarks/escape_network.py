"""Measure how long optimizers stay at a sharp minimum of a small network, beside the theory.

python benchmarks/escape_network.py [--pilot] [--workers 2] [--figure PICTURE.png]

A network of 9 parameters on real digits has two minima whose saddle is known. Walkers begin at the
sharper, shallower minimum, and step by SGD, Adam and InvAdam with gradients of few samples, as
these optimizers are by default. On the *line* they move straight to the other minimum or back, the
one direction that the theory knows, and ``steppe.theory.predict_escape`` predicts their times. In
*all parameters* they leave over the saddle: the same formula takes its height, the curvature and
noise at the minimum towards it, and those at the saddle along its way down. Walkers have left when
gradient descent over all samples leads them to the other side.

Each learning rate makes the predicted exponent E, in the frozen regime, the number in the table;
"E walked" is the logarithm of the walkers' mean time over the theory's prefactor. Theory gives
means, and so does "mean steps": all steps over all escapes. ηPH is lr times the largest curvature,
as the optimizer scales it at the minimum: from 2 on the minimum itself is unstable. Medians have
intervals from order statistics, means those of exponential times.

Writes docs/results/escape-network.json after each cell; the same command goes on after a kill.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cyclopts
import numpy as np
import torch
from cells import measured
from escape_network_model import CLASSES, DECAY, SCALE, dense, half_square, network, scene, swapped
from escape_walk import Array, Walk, leave
from matplotlib.ticker import StrMethodFormatter
from rich import box
from rich.table import Table
from scipy import stats
from torch import Tensor

from steppe._shared.console import make_console, refusals
from steppe._shared.palette import line_style
from steppe._shared.pictures import new_figure, style_axes, write_png
from steppe.theory import (
    Regime,
    escape_time,
    find_method,
    gradient_noise,
    path_coefficient,
    predict_escape,
)

OUT = Path(__file__).parents[1] / "docs" / "results" / "escape-network.json"
PILOT_OUT = Path("results", "escape-network-pilot.json")
METHODS = ("sgd", "adam", "invadam")
WALKERS, BATCH = 200, 4
#: The predicted exponents, by where walkers may move: those that a pilot found finite. In all
#: parameters they differ by method as much as the theory is wrong there.
EXPONENTS: dict[str, dict[str, tuple[float, ...]]] = {
    "line": dict.fromkeys(METHODS, (5.0, 6.0, 7.0)),
    "all parameters": {
        "sgd": (10.0, 12.0, 14.0), "adam": (2.5, 3.0, 3.5), "invadam": (40.0, 50.0, 60.0),
    },
}  # fmt: skip
#: A study's seed, and that of pilots.
SEED, PILOT_SEED = 0, 1000

# Steps after which walkers are stopped.
_MOST_STEPS = 1_000_000
# Relaxation times of the minimum between two checks.
_RELAXATIONS = 5.0
_POINTS = 101


def main(
    *,
    walkers: int = WALKERS,
    workers: int = 2,
    out: Path | None = None,
    pilot: bool = False,
    figure: Path | None = None,
) -> None:
    """Predict, walk, and print.

    Parameters
    ----------
    walkers
        Walkers of each optimizer and learning rate.
    workers
        Processes that walk side by side.
    out
        The JSON file. Default: docs/results/escape-network.json; of a pilot a file in results/.
    pilot
        Take another seed than the study's.
    figure
        Draw times over E, and write the picture here.
    """
    torch.set_num_threads(1)
    out = out or (PILOT_OUT if pilot else OUT)
    settings = {
        "classes": CLASSES, "scale": SCALE, "decay": DECAY, "batch": BATCH, "walkers": walkers,
        "seed": PILOT_SEED if pilot else SEED,
    }  # fmt: skip
    with refusals():
        wells = {f"well/{space}": ("well", space) for space in EXPONENTS}
        found = measured(out, settings, {"scene": ("scene",)} | wells, measure, workers)["cells"]
        walks = {
            f"{space}/{method}/{exponent:g}": (
                "walk", space, method, exponent, found[f"well/{space}"], walkers, settings["seed"],
            )
            for space, methods in EXPONENTS.items()
            for method, exponents in methods.items()
            for exponent in exponents
        }  # fmt: skip
        found = measured(out, settings, walks, measure, workers)["cells"]
    console = make_console()
    console.print(scene_table(found))
    for space in EXPONENTS:
        console.print(walk_table(found, space))
    if figure is not None:
        draw(found, figure)


def measure(kind: str, *cell: Any) -> dict[str, Any]:
    """Measure a cell of any kind."""
    measures: dict[str, Callable[..., dict[str, Any]]]
    measures = {"scene": measured_scene, "well": well, "walk": walk}
    return measures[kind](*cell)


def measured_scene() -> dict[str, Any]:
    """Return losses and curvatures; and the noise between the minimum and a copy of it, which is 0.

    The copy has the hidden units in the other order. Half-way units are equal, and no gradient
    tells them apart.
    """
    here = scene()
    points = {"minimum": here.minimum, "saddle": here.saddle, "other": here.other}
    found: dict[str, Any] = {
        name: {
            "loss": here.loss(at),
            "curvatures": torch.linalg.eigvalsh(dense(at, here.inputs, here.targets)).tolist(),
        }
        for name, at in points.items()
    }
    copy = swapped(here.minimum)
    out, half = copy - here.minimum, (copy + here.minimum) / 2.0
    found["noise to a copy"] = [along(at, out)["variance"] for at in (here.minimum, half)]
    return found


def along(at: Tensor, direction: Tensor) -> dict[str, float]:
    """Return the curvature and the noise of one sample at a point along a direction."""
    here = scene()
    noise = gradient_noise(network(at), half_square, here.samples, direction)
    return {"variance": float(noise.variance), "curvature": float(noise.curvature)}


def well(space: str) -> dict[str, Any]:
    """Return what the formula takes: from the straight path, or from minimum and saddle."""
    here = scene()
    if space == "line":
        found = predict_escape(
            network(here.minimum), network(here.other), half_square, here.samples, method="sgd",
            lr=1.0, batch_size=BATCH, noise="measured", points=_POINTS,
        )  # fmt: skip
        noise = list(found.noise)
        shape = {"barrier": found.barrier, "h_min": found.h_min, "h_saddle": found.h_saddle}
        return shape | {"s": found.s, "noise": noise}
    down = torch.linalg.eigh(dense(here.saddle, here.inputs, here.targets)).eigenvectors[:, 0]
    low, top = along(here.minimum, here.saddle - here.minimum), along(here.saddle, down)
    h_min, h_saddle = low["curvature"], -top["curvature"]
    return {
        "barrier": here.loss(here.saddle) - here.loss(here.minimum),
        "h_min": h_min,
        "h_saddle": h_saddle,
        "s": path_coefficient(h_min, h_saddle),
        "noise": [low["variance"] / h_min, top["variance"] / h_saddle],
    }


def walk(
    space: str, method: str, exponent: float, well: dict[str, Any], walkers: int, seed: int
) -> dict[str, Any]:
    """Let walkers leave at the learning rate at which E is the exponent.

    They are checked once in five relaxation times of the minimum, 1/(ηPh), on the way out.
    """
    here, preconditioner = scene(), find_method(method, None).preconditioner
    unit = escape_time(method, lr=1.0, batch_size=BATCH, regime="frozen", **well)
    lr = unit.exponent / exponent
    regimes: dict[str, Regime] = {"frozen": "frozen", "local": "local"}
    theory = {
        name: escape_time(method, lr=lr, batch_size=BATCH, regime=regime, **well).to_dict()
        for name, regime in regimes.items()
    }
    variance = well["noise"][0] * well["h_min"] / BATCH
    rate = lr * preconditioner(variance, None) * well["h_min"]
    every = max(1, round(_RELAXATIONS / rate))
    out = (here.other - here.minimum).numpy()
    basis = out[None] / np.linalg.norm(out) if space == "line" else np.eye(len(out))
    noise = gradient_noise(
        network(here.minimum), half_square, here.samples, torch.from_numpy(basis)
    )
    variances = np.diagonal(noise.variance) / BATCH
    root = np.sqrt([preconditioner(each, None) for each in variances])
    largest = lr * float(np.linalg.eigvalsh(root[:, None] * noise.curvature * root)[-1])
    optimizer = Walk(
        method=method,
        lr=lr,
        batch_size=BATCH,
        variances=variances,
        every=every,
        checks=_MOST_STEPS // every,
    )
    times, left = leave(here.basin(basis), optimizer, walkers, seed)
    return {
        "lr": lr,
        "largest step": largest,
        "every": every,
        **theory,
        "times": times.tolist(),
        "left": left.tolist(),
    }


def readings(cell: dict[str, Any]) -> dict[str, tuple[float, float, float]]:
    """Return the median and the mean number of steps, each with its 95 % interval.

    Walkers that were stopped count as later than all others in the median. The mean is all steps
    over all escapes, whose interval is exact for exponential times.
    """
    left = np.array(cell["left"])
    times = np.where(left, cell["times"], math.inf)
    return {"median": median(times), "mean": mean(float(sum(cell["times"])), int(left.sum()))}


def median(times: Array) -> tuple[float, float, float]:
    """Return the median and the order statistics that hold it in 95 % of samples."""
    ordered, n = np.sort(times), len(times)
    low = max(int(stats.binom.ppf(0.025, n, 0.5)) - 1, 0)
    return float(ordered[(n - 1) // 2]), float(ordered[low]), float(ordered[n - 1 - low])


def mean(steps: float, escapes: int) -> tuple[float, float, float]:
    """Return the mean time of exponential escapes; without any, infinity and its lower bound."""
    low = 2.0 * steps / float(stats.chi2.ppf(0.975, 2 * escapes + 2))
    if not escapes:
        return math.inf, low, math.inf
    return steps / escapes, low, 2.0 * steps / float(stats.chi2.ppf(0.025, 2 * escapes))


def scene_table(found: dict[str, Any]) -> Table:
    """Show minima, saddle, and what the formula is told of them."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=False)
    scene, least = found["scene"], found["scene"]["minimum"]["loss"]
    for name in ("minimum", "saddle", "other"):
        low, *_, high = scene[name]["curvatures"]
        loss = scene[name]["loss"] - least
        table.add_row(name, f"loss {loss:+.5f}, curvatures {low:.4f} to {high:.3f}")
    here, half = scene["noise to a copy"]
    table.add_row("way to a copy", f"variance {here:.3g} at the minimum, {half:.3g} half-way")
    for space in EXPONENTS:
        well = found[f"well/{space}"]
        table.add_row(
            space,
            f"barrier {well['barrier']:.5f}, h {well['h_min']:.4f} and −{well['h_saddle']:.4f}, "
            f"s {well['s']:.2f}, C·B/|h| {well['noise'][0]:.2f} and {well['noise'][1]:.2f}",
        )
    return table


def walk_table(found: dict[str, Any], space: str) -> Table:
    """Show the walkers' times beside the theory's."""
    headings = ["method", "lr", "ηPH", "left", "mean steps", "median", "E", "E walked", "E local"]
    table = Table(
        *headings, box=box.SIMPLE_HEAD, pad_edge=False, title=f"Walkers: {space}",
        title_justify="left",
    )  # fmt: skip
    rows = [(method, E) for method, exponents in EXPONENTS[space].items() for E in exponents]
    for method, exponent in rows:
        cell = found[f"{space}/{method}/{exponent:g}"]
        read, theory = readings(cell), cell["frozen"]
        walked = [math.log(each / theory["prefactor"]) for each in read["mean"]]
        table.add_row(
            method,
            f"{cell['lr']:.3g}",
            f"{cell['largest step']:.2g}",
            f"{sum(cell['left'])}/{len(cell['left'])}",
            f"{read['mean'][0]:.2g}",
            _written(read["median"]),
            f"{exponent:g}",
            _written(walked),
            f"{cell['local']['exponent']:.3g}",
        )
    return table


def _written(found: Sequence[float]) -> str:
    value, low, high = found
    return f"{value:.2g} [{low:.2g}, {high:.2g}]"


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw mean times over E, the theory's as lines."""
    figure = new_figure("Steps until a network's minimum is left, mean", (9, 4.4))
    panels = figure.subplots(1, len(EXPONENTS), sharey=True)
    for axes, (space, methods) in zip(panels, EXPONENTS.items(), strict=True):
        style_axes(axes, f"walkers: {space}", grid="both")
        for index, (method, exponents) in enumerate(methods.items()):
            cells = [found[f"{space}/{method}/{exponent:g}"] for exponent in exponents]
            middle, low, high = np.transpose([readings(cell)["mean"] for cell in cells])
            style, E = line_style(index), np.array(exponents)
            theory = [math.exp(cell["frozen"]["log"]) for cell in cells]
            axes.plot(exponents, theory, color=style.colour, label=f"{method}, theory")
            some = np.isfinite(middle)
            axes.errorbar(
                E[some], middle[some], (middle[some] - low[some], high[some] - middle[some]),
                fmt=style.marker, color=style.colour, label=f"{method}, walkers",
            )  # fmt: skip
        axes.set(yscale="log", ylim=(100, 1e8), xlabel="predicted exponent E")
    figure.axes[0].yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    figure.axes[0].set_ylabel("steps")
    figure.axes[0].legend(frameon=False)
    write_png(figure, path)


if __name__ == "__main__":
    cyclopts.run(main)
