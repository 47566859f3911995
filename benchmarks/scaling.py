"""How the time of a step, and the memory it takes while it runs, grow with the parameters.

python benchmarks/scaling.py [--optimizer dualadam] [--largest 500] [--steps 10] [--device cpu]

Steps 1 M to 500 M parameters, which takes 9 GB with two moments, and writes scaling.json and
scaling.png into results/scaling. Ends with status 1 if time grows faster than with the power 1.05
of the size, or a step takes more than 1 % of the parameters' memory while it runs.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import cyclopts
import numpy as np
import torch
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from steppe._shared.console import refusals
from steppe._shared.devices import find_device
from steppe._shared.files import write_text
from steppe._shared.palette import COLOURS, GREY
from steppe._shared.pictures import new_figure, style_axes, write_png
from steppe.bench import (
    Copy,
    MeasuredOptimizer,
    find_measured,
    peak_extra,
    time_in_turn,
    uniform,
    warm_up,
)

_MILLION = 1_000_000
_SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500)

MOST_GROWTH = 1.05
MOST_EXTRA = 0.01


@dataclass(frozen=True)
class Point:
    """Seconds and extra memory, as a share of the parameters', of a step over some millions."""

    millions: int
    seconds: float
    extra: float | None


def main(
    optimizer: str = "dualadam",
    largest: int = 500,
    steps: int = 10,
    device: str = "cpu",
    out_dir: Path = Path("results", "scaling"),
) -> None:
    """Measure the sizes up to the largest, draw them, and judge the growth."""
    with refusals():
        if largest < _SIZES[1]:
            raise ValueError(f"largest must be at least {_SIZES[1]}, got {largest}")
        measured, torch_device = find_measured(optimizer), find_device(device)
        out_dir.mkdir(parents=True, exist_ok=True)
    points = []
    for millions in (size for size in _SIZES if size <= largest):
        points.append(measure(measured, millions, steps, torch_device))
        print(described(points[-1]), flush=True)
    growth = slope(points)
    content = {"optimizer": measured.name, "growth": growth, "points": list(map(asdict, points))}
    write_text(out_dir / "scaling.json", json.dumps(content, indent=2) + "\n")
    draw(
        points, f"{measured.name}: time grows as size to the {growth:.2f}", out_dir / "scaling.png"
    )
    worst = max(point.extra or 0.0 for point in points)
    print(f"Time grows as size to the {growth:.2f}; it may to the {MOST_GROWTH}.")
    print(f"A step takes at most {worst:.2%} of the parameters' memory; it may {MOST_EXTRA:.0%}.")
    if growth > MOST_GROWTH or worst > MOST_EXTRA:
        raise SystemExit(1)


def measure(measured: MeasuredOptimizer, millions: int, steps: int, device: torch.device) -> Point:
    """Time steps over tensors of a million numbers each, from cold caches."""
    optimizer = measured.build(uniform(millions, _MILLION), device)
    warm_up(optimizer)
    _, times = time_in_turn((Copy(device), optimizer.step), steps, device)
    extra = peak_extra(optimizer.step, device)
    share = None if extra is None else extra / (measured.dtype.itemsize * _MILLION * millions)
    return Point(millions, float(np.median(times)), share)


def slope(points: list[Point]) -> float:
    """Return the power of the size that time grows with, by a fit in logarithms."""
    sizes = np.log([point.millions for point in points])
    times = np.log([point.seconds for point in points])
    return float(np.polyfit(sizes, times, 1)[0])


def described(point: Point) -> str:
    """Return a point as one line of text."""
    extra = "" if point.extra is None else f", extra memory {100 * point.extra:.2f} %"
    return f"{point.millions:>5} M parameters: {1e3 * point.seconds:9.2f} ms{extra}"


def draw(points: list[Point], title: str, path: Path) -> None:
    """Draw time over size beside a line of power 1 through the largest size."""
    sizes = [point.millions for point in points]
    times = [1e3 * point.seconds for point in points]
    proportional = [times[-1] * size / sizes[-1] for size in sizes]
    figure = new_figure(title, (6, 4.2))
    axes = figure.subplots()
    style_axes(axes, "", grid="both")
    axes.loglog(sizes, proportional, color=GREY, lw=1, label="in proportion")
    axes.loglog(sizes, times, "o-", color=COLOURS[0], label="measured")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("parameters, millions")
    axes.set_ylabel("ms per step")
    axes.legend(frameon=False)
    write_png(figure, path)


if __name__ == "__main__":
    cyclopts.run(main)
