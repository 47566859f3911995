"""Check a whole benchmark before anything is measured, then measure block after block."""

import importlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from steppe._shared.cli_options import AT_LEAST_ONE, THREAD_COUNT
from steppe._shared.devices import find_device
from steppe._shared.messages import first_line
from steppe.bench.failure import Failure
from steppe.bench.first_step import FIRST_STEP, FirstStep, first_step
from steppe.bench.measurement import Measurement, measure
from steppe.bench.optimizers import (
    BASELINE,
    MeasuredOptimizer,
    default_names,
    find_measured,
    missing_packages,
)
from steppe.bench.shapes import MODELS, check_models

# The plot needs it. A missing package is better reported now than after minutes of measuring.
_NEEDED_LATER = "matplotlib.figure"


@dataclass(frozen=True)
class BenchmarkPlan:
    """The models, optimizers and conditions of a benchmark, all of them checked.

    Attributes
    ----------
    models : tuple of str
        Names of the models.
    optimizers : tuple of MeasuredOptimizer
        The optimizers; the baseline is the first, as its row shows the noise.
    steps : int
        Number of steps of each optimizer that are timed.
    device : torch.device
        The device that holds the tensors.
    threads : int
        Number of threads that the CPU may use.
    failures : tuple of Failure, default empty
        Peers that are installed, but cannot be imported.
    not_installed : tuple of str, default empty
        Packages whose peers are left out.
    """

    models: tuple[str, ...]
    optimizers: tuple[MeasuredOptimizer, ...]
    steps: int
    device: torch.device
    threads: int
    failures: tuple[Failure, ...] = ()
    not_installed: tuple[str, ...] = ()

    def blocks(self) -> list[tuple[str, MeasuredOptimizer]]:
        """Return pairs of block and optimizer; blocks are the models, then "first step"."""
        return [(block, each) for block in (*self.models, FIRST_STEP) for each in self.optimizers]


Outcome = Measurement | FirstStep | Failure


def plan_benchmark(
    models: Sequence[str] = ("resnet18", "small"),
    optimizers: Sequence[str] | None = None,
    *,
    steps: int = 20,
    device: str = "cpu",
    threads: int | None = None,
) -> BenchmarkPlan:
    """Check everything that can be checked before measuring.

    Parameters
    ----------
    models : sequence of str
        Of :data:`steppe.bench.shapes.MODELS`.
    optimizers : sequence of str or None
        Names as :func:`steppe.bench.optimizers.find_measured` reads them; None takes
        :func:`steppe.bench.optimizers.default_names`. The baseline is always among them.
    steps : int, default 20
        Number of steps of each optimizer that are timed.
    device : str, default "cpu"
        A torch device.
    threads : int or None
        Number of threads that the CPU may use; None takes as many as torch does.

    Raises
    ------
    ValueError
        An option is out of its range, or a name is not known.
    ModuleNotFoundError
        A package that the plot needs is not installed.

    Examples
    --------
    >>> plan_benchmark(["small"], ["adamw-fused"], threads=1).blocks()[0][0]
    'small'
    """
    threads = torch.get_num_threads() if threads is None else threads
    AT_LEAST_ONE.check("steps", steps)
    THREAD_COUNT.check("threads", threads)
    checked, torch_device = check_models(models), find_device(device)
    importlib.import_module(_NEEDED_LATER)
    failures: list[Failure] = []
    if optimizers is None:
        chosen = [*_importable(default_names(torch_device), failures)]
        missing = missing_packages(torch_device)
    else:
        chosen, missing = [*map(find_measured, optimizers)], ()
    found = {each.name: each for each in (BASELINE, *chosen)}
    return BenchmarkPlan(
        checked, tuple(found.values()), steps, torch_device, threads, tuple(failures), missing
    )


def execute(benchmark: BenchmarkPlan) -> Iterator[Outcome]:
    """Yield the outcome of each of the benchmark's blocks, in their order."""
    with _threads(benchmark.threads):
        for block, optimizer in benchmark.blocks():
            if block == FIRST_STEP:
                yield first_step(optimizer.name, benchmark.device, benchmark.threads)
            else:
                yield try_measure(block, optimizer, benchmark.steps, benchmark.device)


def try_measure(
    model: str, optimizer: MeasuredOptimizer, steps: int, device: torch.device
) -> Measurement | Failure:
    """Measure an optimizer on a model, or return the error as a :class:`Failure`.

    Parameters
    ----------
    model : str
        One of :data:`steppe.bench.shapes.MODELS`.
    optimizer : MeasuredOptimizer
        The optimizer.
    steps : int
        Number of steps that are timed.
    device : torch.device
        The device that holds the tensors.
    """
    # Anything may go wrong in a step: no kernel, no memory, a closure that is missing.
    try:
        found = MODELS[model]
        return measure(model, found.shapes(), optimizer, steps, device, host=found.is_host)
    except Exception as error:
        return Failure(model, optimizer.name, first_line(error))


def _importable(names: Iterable[str], failures: list[Failure]) -> Iterator[MeasuredOptimizer]:
    """Yield the optimizers of these names, and add those that cannot be imported to the failures.

    Nobody has asked for them by name, so nothing ends for one that is broken.
    """
    for name in names:
        try:
            yield find_measured(name)
        except ValueError as error:
            failures.append(Failure("import", name, first_line(error)))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
