"""A benchmark: checked before anything is measured, then block after block."""

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from steppe._shared.devices import usable
from steppe._shared.plurals import first_line
from steppe.bench.failure import Failure
from steppe.bench.first_step import FIRST_STEP, FirstStep, first_step
from steppe.bench.measured import MeasuredOptimizer, default_names, find_measured
from steppe.bench.measurement import Measurement, measure
from steppe.bench.shapes import MODELS, check_models

# The plot needs it: better missed now than after the measurements.
_NEEDED_LATER = "matplotlib.figure"


@dataclass(frozen=True)
class BenchmarkPlan:
    """What to measure.

    Attributes
    ----------
    models : tuple of str
        Names of the models.
    contenders : tuple of MeasuredOptimizer
        The optimizers.
    rounds : int
        How many steps of each are timed.
    device : torch.device
        Where.
    threads : int
        How many the CPU may use.
    """

    models: tuple[str, ...]
    contenders: tuple[MeasuredOptimizer, ...]
    rounds: int
    device: torch.device
    threads: int

    def blocks(self) -> list[tuple[str, MeasuredOptimizer]]:
        """List what is measured, in order: the models, then the first steps."""
        return [(model, one) for model in (*self.models, FIRST_STEP) for one in self.contenders]


Outcome = Measurement | FirstStep | Failure


def plan(
    models: Sequence[str] = ("resnet18", "small"),
    optimizers: Sequence[str] | None = None,
    *,
    steps: int = 20,
    device: str = "cpu",
    threads: int | None = None,
) -> BenchmarkPlan:
    """Check everything that can be checked.

    Parameters
    ----------
    models : sequence of str
        Of :data:`steppe.bench.shapes.MODELS`.
    optimizers : sequence of str or None
        Names as :func:`steppe.bench.measured.find_measured` reads them; None takes all that
        have a name there.
    steps : int, default 20
        How many steps of each optimizer are timed.
    device : str, default "cpu"
        A torch device.
    threads : int or None
        None takes as many as torch does.

    Raises
    ------
    ValueError
        If an option is out of its range, or a name is not known.
    ModuleNotFoundError
        If a package is not installed that the plot needs.
    """
    names = default_names() if optimizers is None else optimizers
    contenders = {one.name: one for one in map(find_measured, names)}
    threads = torch.get_num_threads() if threads is None else threads
    for name, count in {"steps": steps, "threads": threads}.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
    importlib.import_module(_NEEDED_LATER)
    return BenchmarkPlan(
        check_models(models), tuple(contenders.values()), steps, usable(device), threads
    )


def execute(setup: BenchmarkPlan) -> Iterator[Outcome]:
    """Yield the outcome of each of the setup's blocks, in their order."""
    with _threads(setup.threads):
        for block, contender in setup.blocks():
            if block == FIRST_STEP:
                yield first_step(contender.name, setup.device, setup.threads)
            else:
                yield attempt(block, contender, setup.rounds, setup.device)


def attempt(
    model: str, contender: MeasuredOptimizer, rounds: int, device: torch.device
) -> Measurement | Failure:
    """Measure a contender on a model, or say why that cannot be."""
    # Anything may go wrong in a step: no kernel, no memory, a closure that is missing.
    try:
        return measure(model, MODELS[model](), contender, rounds, device)
    except Exception as error:
        return Failure(model, contender.name, first_line(error))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
