"""How well the theory of escape holds: simulated walkers against the formula.

python benchmarks/escape.py [--quick] [--seed 0]

A line is fitted to log(τ/prefactor) over the exponent, whose slope is 1 in theory, for each method
in 9 wells: three sharpnesses, and saddles flatter than the minimum, alike, and sharper. Then Adam
and InvAdam run with momentum, or with a true average of squared gradients, in a well whose saddle
is flatter than the minimum, against the two regimes of the theory; and InvAdam in wells that are
outside the formula's limits. Ends with status 1 if a slope is outside 0.9–1.1 or r is not above
0.98, unless --quick.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import TypedDict

import cyclopts
import numpy as np
from rich import box
from rich.table import Table

from steppe._shared.console import make_console
from steppe.theory import (
    Agreement,
    Escape,
    SecondMoment,
    Simulation,
    Well,
    agreement,
    escape_time,
    limit_well,
    path_coefficient,
    simulate_escape,
)


class Averages(TypedDict, total=False):
    """What the formula leaves out."""

    beta1: float
    beta2: float
    second_moment: SecondMoment


#: Batch sizes, and α of DualAdam, such that both its parts count.
METHODS: dict[str, tuple[float, float | None]] = {
    "sgd": (1.0, None),
    "adam": (16.0, None),
    "invadam": (16.0, None),
    "dualadam": (2.0, 0.8),
}
POWERS = {"sgd": 0.0, "adam": -0.5, "invadam": 0.5, "dualadam": 0.2}
TERMS = (3.0, 3.15, 3.3)
AVERAGES: tuple[Averages, ...] = (
    {"beta1": 0.9},
    {"second_moment": "ema", "beta2": 0.9},
    {"second_moment": "ema", "beta2": 0.99},
    {"second_moment": "ema", "beta2": 0.999},
    {"second_moment": "ema", "beta2": 0.9999},
)

# Of the exponent's terms, in wells whose saddle is not as sharp as the minimum.
_UNEQUAL = 1.2

# lr·P·h at the minimum and |h_saddle|/h_min, of wells whose exponent is 8. A ratio of ½ makes
# InvAdam's terms 1.2 and 6.8.
_OUTSIDE = ((0.14, 1.0), (0.06, 1.0), (0.14, 0.5), (0.06, 0.5), (0.014, 0.5))
_OUTSIDE_EXPONENT = 8.0


@dataclass
class Count:
    """What has been walked."""

    steps: int = 0
    escapes: int = 0


def main(
    *,
    quick: bool = False,
    seed: int = 0,
) -> None:
    """Simulate, fit, print and judge.

    Parameters
    ----------
    quick
        Simulate a fiftieth of the walkers, too few to judge.
    seed
        Seed of all walkers.
    """
    budget = 1.1e7 if quick else 5.6e8
    seeds = new_seeds(seed)
    count, start = Count(), time.perf_counter()
    console = make_console()
    found = {method: fitted(method, budget, seeds, count) for method in METHODS}
    console.print(fit_table(found))
    console.print(memory_table(budget, seeds, count))
    console.print(outside_table(budget / 2.0, seeds, count))
    seconds = time.perf_counter() - start
    console.print(
        f"{count.escapes:,} escapes, {count.steps:.3g} steps in {seconds:.0f} s: "
        f"{count.steps / seconds / 1e6:.0f} million steps a second."
    )
    if not quick and not all(0.9 <= one.slope <= 1.1 and one.r > 0.98 for one, _ in found.values()):
        raise SystemExit(1)


def new_seeds(seed: int) -> Iterator[int]:
    """Yield seeds that no other seed, nor another place, has in common."""
    sequence = np.random.SeedSequence(seed)
    while True:
        yield int(sequence.spawn(1)[0].generate_state(1, np.uint64)[0])


def fitted(
    method: str, budget: float, seeds: Iterator[int], count: Count
) -> tuple[Agreement, list[Simulation]]:
    """Simulate a method in all wells."""
    batch_size, alpha = METHODS[method]
    ratio = _UNEQUAL ** (1.0 / (2.0 + POWERS[method]))
    wells = [
        limit_well(method, term, ratio, batch_size=batch_size, alpha=alpha)
        for term, ratio in product(TERMS, (1.0 / ratio, 1.0, ratio))
    ]
    theory = [predicted(method, well) for well in wells]
    simulations = [
        simulate_escape(method, **well, walkers=affordable(budget, one), seed=next(seeds))
        for well, one in zip(wells, theory, strict=True)
    ]
    for simulation in simulations:
        add(count, simulation)
    return agreement(theory, simulations), simulations


def predicted(method: str, well: Well) -> Escape:
    """Ask the theory, in the local regime."""
    return escape_time(method, **well, s=path_coefficient(well["h_min"], well["h_saddle"]))


def affordable(budget: float, escape: Escape) -> int:
    """Return how many walkers may walk for so many steps in all."""
    return max(20, round(budget / escape.steps))


def add(count: Count, simulation: Simulation) -> None:
    """Count a simulation in."""
    count.steps += int(simulation.times.sum())
    count.escapes += simulation.escaped


def fit_table(found: dict[str, tuple[Agreement, list[Simulation]]]) -> Table:
    """Show slopes."""
    table = new_table("Theory and simulation", "method", "slope", "r", "τ, simulated/theory")
    table.add_column("escapes", justify="right")
    for method, (one, simulations) in found.items():
        table.add_row(
            method,
            f"{one.slope:.3f} ± {one.slope_standard_error:.3f}",
            f"{one.r:.4f}",
            f"{math.exp(one.bias):.3f} ± {math.exp(one.bias) * one.bias_standard_error:.3f}",
            f"{sum(simulation.escaped for simulation in simulations):,}",
        )
    return table


def memory_table(budget: float, seeds: Iterator[int], count: Count) -> Table:
    """Compare averages of squared gradients with both regimes."""
    table = new_table(
        "Averages: τ, simulated over theory's",
        "method", "averages", "local", "frozen", "escapes",
    )  # fmt: skip
    for method in ("adam", "invadam"):
        batch_size, _ = METHODS[method]
        ratio = _UNEQUAL ** (-1.0 / (2.0 + POWERS[method]))
        well = limit_well(method, 3.0, ratio, batch_size=batch_size)
        local = predicted(method, well)
        s = path_coefficient(well["h_min"], well["h_saddle"])
        frozen = escape_time(method, **well, s=s, regime="frozen")
        for averages in AVERAGES:
            simulation = simulate_escape(
                method, **well, **averages, seed=next(seeds),
                walkers=affordable(budget, local),
            )  # fmt: skip
            add(count, simulation)
            error = simulation.standard_error / simulation.mean
            ratios = [simulation.mean / one.steps for one in (local, frozen)]
            table.add_row(
                method,
                _named(averages),
                *(f"{value:.3f} ± {value * error:.3f}" for value in ratios),
                f"{simulation.escaped:,}",
            )
    return table


def outside_table(budget: float, seeds: Iterator[int], count: Count) -> Table:
    """Let InvAdam walk where the theory says that it does not hold."""
    table = new_table(
        "Outside the limits: InvAdam, E = 8",
        "lr·P·h_min", "h_saddle/h_min", "terms", "τ, simulated/theory", "escapes",
    )  # fmt: skip
    batch_size, _ = METHODS["invadam"]
    for step, ratio in _OUTSIDE:
        # P is √(h/B). E is in proportion to the barrier.
        well = Well(
            lr=step * math.sqrt(batch_size), batch_size=batch_size, barrier=1.0,
            h_min=1.0, h_saddle=ratio, alpha=None,
        )  # fmt: skip
        well["barrier"] = _OUTSIDE_EXPONENT / predicted("invadam", well).exponent
        theory = predicted("invadam", well)
        walkers = affordable(budget, theory)
        simulation = simulate_escape("invadam", **well, walkers=walkers, seed=next(seeds))
        add(count, simulation)
        share, error = simulation.mean / theory.steps, simulation.standard_error / theory.steps
        table.add_row(
            f"{step:g}",
            f"{ratio:g}",
            " and ".join(f"{term:.2g}" for term in theory.terms),
            f"{share:.3f} ± {error:.3f}",
            f"{simulation.escaped:,}",
        )
    return table


def _named(averages: Averages) -> str:
    beta2 = averages.get("beta2")
    return f"β₁ = {averages['beta1']:g}, v local" if beta2 is None else f"β₂ = {beta2:g}"


def new_table(title: str, *headings: str) -> Table:
    """Begin a table whose first column is text."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left")
    return table


if __name__ == "__main__":
    cyclopts.run(main)
