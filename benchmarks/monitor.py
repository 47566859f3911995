"""Measure what Monitor costs in a run, and how many products its warm-started searches save.

An MLP and a small CNN learn digits, in batches of 64, on one thread. A run with and one without the
Monitor, at its defaults, take steps in turn; costs are medians of ratios of the process's time, so
that other work of the machine counts little. Two runs without it are compared in the same way.
Products are counted for λ_max and λ_max(PH) every 40 steps: by searches that verify and begin at
random, and by those that begin at the last eigenvector and do not. Writes the block of
docs/training.md between ``<!-- benchmarks/monitor.py -->`` and ``<!-- end -->``. Takes five minutes
on one core.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from page_blocks import with_block
from problems import CRITERION, convolutional, digits, layered
from torch import Tensor, nn

import steppe
from steppe._shared.files import write_text
from steppe._shared.progress import progress
from steppe.landscape import Monitor, Operator, hessian, preconditioned, top_eigenvalues

PAGE = Path(__file__).parents[1] / "docs" / "training.md"
ROUNDS, STEPS, BATCH, SAMPLES = 5, 3000, 64, 256
EVERY, MEASUREMENTS, TOL = 40, 20, 0.02


def mlp() -> nn.Module:
    """Make an MLP of 85 002 parameters."""
    return layered(64, 256, 256, 10)


def cnn() -> nn.Module:
    """Make a CNN of 6 495 parameters."""
    return convolutional(16, 16, 15)


NETWORKS: dict[str, Callable[[], nn.Module]] = {"MLP": mlp, "CNN": cnn}


class Training:
    """A network, an optimizer, and steps on random batches."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        self.model = make()
        self.optimizer = steppe.DualAdam(self.model.parameters(), lr=1e-3, total_steps=STEPS)
        self.inputs, self.targets = digits()

    @property
    def data(self) -> list[tuple[Tensor, Tensor]]:
        """The batch that is measured on."""
        return [(self.inputs[:SAMPLES], self.targets[:SAMPLES])]

    def step(self) -> None:
        """Take a step on a random batch."""
        chosen = torch.randint(len(self.inputs), (BATCH,))
        self.optimizer.zero_grad()
        CRITERION(self.model(self.inputs[chosen]), self.targets[chosen]).backward()
        self.optimizer.step()


class Cost(NamedTuple):
    """How much longer runs took than one without the Monitor, and what the Monitor told."""

    excess: float
    null: float
    told: float
    measurements: int
    samples: int


class Stopwatch:
    """The process's time, less that of what is not to be counted."""

    def __init__(self) -> None:
        self.left_out = 0.0

    def __call__(self) -> float:
        """Return the seconds."""
        return time.process_time() - self.left_out


def cost(make: Callable[[], nn.Module]) -> Cost:
    """Compare a run that is watched, and one more that is not, to one without the Monitor."""
    run, clock = Training(make), Stopwatch()
    monitor = Monitor(run.model, CRITERION, run.data, run.optimizer, clock=clock)

    def watched() -> None:
        run.step()
        monitor.step()

    excess = compare(watched, Training(make).step, clock)
    null = compare(Training(make).step, Training(make).step, Stopwatch())
    return Cost(excess, null, monitor.cost_share, len(monitor.history), monitor.samples)


def compare(one: Callable[[], None], other: Callable[[], None], clock: Stopwatch) -> float:
    """Let both take steps in turn; return how much longer the first took, as a share.

    The clock leaves out the time of the other.
    """
    seconds = {one: 0.0, other: 0.0}
    for number in range(2 * STEPS):
        # By pairs in changing order.
        step = one if number % 4 in (0, 3) else other
        began = time.process_time()
        step()
        taken = time.process_time() - began
        seconds[step] += taken
        clock.left_out += taken if step is other else 0.0
    return seconds[one] / seconds[other] - 1


class Searches(NamedTuple):
    """Products of searches along a run, and how many of the warm ones missed the eigenvalue."""

    cold: list[int]
    warm: list[int]
    missed: int


def searches(make: Callable[[], nn.Module], *, scaled: bool) -> Searches:
    """Search for λ_max, or for λ_max(PH) if ``scaled``, along a run, from its first steps."""
    run, found, start = Training(make), Searches([], [], 0), None
    for number in range(MEASUREMENTS):
        for _ in range(EVERY):
            run.step()
        H: Operator = hessian(run.model, CRITERION, run.data)
        operator = preconditioned(H, run.optimizer) if scaled else H
        truth = top_eigenvalues(operator, 1, which="LA", tol=TOL, seed=number)
        if start is not None:
            warm = top_eigenvalues(
                operator, 1, which="LA", tol=TOL, seed=number, start=start, verify=False
            )
            found.cold.append(truth.products)
            found.warm.append(warm.products)
            is_missed = warm.values[0] < (1 - TOL) * truth.values[0]
            found = found._replace(missed=found.missed + int(is_missed))
        start = (truth if start is None else warm).vectors[:, 0]
    return found


def main() -> None:
    """Measure, and write the tables."""
    torch.set_num_threads(1)
    columns = "longer than without | two runs without | told | measurements | samples"
    lines = [f"| | {columns} |", "| --- " * 6 + "|"]
    counts = ["| | products, at random | from the last eigenvector | larger one missed |"]
    counts.append("| --- " * 4 + "|")
    with progress("monitored runs", len(NETWORKS) * ROUNDS) as advance:
        for name, make in NETWORKS.items():
            rounds = []
            for _ in range(ROUNDS):
                rounds.append(cost(make))
                advance(1)
            lines.append(cost_row(name, rounds))
            counts += [
                search_row(f"{name}, {quantity}", searches(make, scaled=scaled))
                for quantity, scaled in (("λ_max", False), ("λ_max(PH)", True))
            ]
    text = "\n".join([*lines, "", *counts]) + "\n"
    page = PAGE.read_text(encoding="utf-8")
    write_text(PAGE, with_block(page, "monitor", text))
    print(text)


def cost_row(name: str, rounds: list[Cost]) -> str:
    """Return a line: medians, and the ranges of what was compared."""

    def written(values: list[float]) -> str:
        return f"{np.median(values):.1f} % ({min(values):.1f} to {max(values):.1f})"

    excess, null = ([100 * each[column] for each in rounds] for column in (0, 1))
    told, count, samples = np.median([each[2:] for each in rounds], axis=0)
    shares = f"{written(excess)} | {written(null)} | {100 * told:.1f} %"
    return f"| {name} | {shares} | {count:.0f} | {samples:.0f} |"


def search_row(name: str, found: Searches) -> str:
    """Return a line: means with the range, and how often the warm search ended too low."""

    def written(products: list[int]) -> str:
        return f"{np.mean(products):.1f} ({min(products)} to {max(products)})"

    missed = f"{found.missed} of {len(found.warm)}"
    return f"| {name} | {written(found.cold)} | {written(found.warm)} | {missed} |"


if __name__ == "__main__":
    main()
