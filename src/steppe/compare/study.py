"""A comparison: checked before anything is trained, then run after run, each kept."""

import importlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from steppe.commands.devices import usable
from steppe.commands.wording import first_line
from steppe.compare.controls import find_recipes
from steppe.compare.data import Data
from steppe.compare.optimizers import Recipe
from steppe.compare.results import Results
from steppe.compare.run import Outcome, Run, Setup
from steppe.compare.tasks import find_task
from steppe.compare.train import step, train

# DualAdam's published switch takes 1/8e-5 = 12 500 steps, 16 % of its 200 epochs on CIFAR.
SWITCH_SHARE = 0.16

# The table and the curves need them: better missed now than after hours of training.
_NEEDED_LATER = ("scipy.stats", "matplotlib.figure")


@dataclass(frozen=True)
class Study:
    """Which optimizers, over how many seeds, under which common setup.

    Attributes
    ----------
    setup : Setup
        What all runs share.
    recipes : tuple of Recipe
        The optimizers; the first is the baseline.
    seeds : int
        Seeds 0 … seeds − 1.
    data : Data
        On the setup's device.
    """

    setup: Setup
    recipes: tuple[Recipe, ...]
    seeds: int
    data: Data

    @property
    def steps(self) -> int:
        """Training steps of one run."""
        return _steps(self.data, self.setup.epochs, self.setup.batch_size)

    def runs(self) -> tuple[Run, ...]:
        """Seed by seed, so that an interrupted comparison still compares like with like."""
        return tuple(
            Run(self.setup, recipe, seed) for seed in range(self.seeds) for recipe in self.recipes
        )


def plan(
    task: str,
    optimizers: Sequence[str],
    *,
    seeds: int = 3,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    switch_rate: float | None = None,
    device: str = "cpu",
    threads: int | None = None,
    data: Path | None = None,
) -> Study:
    """Check everything that can be checked, and take one trial step with every optimizer.

    Parameters
    ----------
    task : str
        One of :data:`steppe.compare.tasks.TASKS`.
    optimizers : sequence of str
        Names as :func:`steppe.compare.optimizers.find_recipe` reads them.
    seeds : int, default 3
        How often to repeat.
    epochs, batch_size, threads : int or None
        None takes the task's own.
    lr : float or None
        None takes each optimizer's own default.
    switch_rate : float or None
        In (0, 1]. None scales the published rate, so that the switch takes 16 % of the run.
    device : str, default "cpu"
        A torch device.
    data : Path or None
        Directory of the task's files.

    Raises
    ------
    ValueError
        If an option is out of its range, a name is not known, or an optimizer cannot take a step.
    FileNotFoundError
        If the data is not there.
    ModuleNotFoundError
        If a package is not installed that the study, its table or its curves need.
    """
    found = find_task(task)
    recipes = find_recipes(optimizers)
    epochs = found.epochs if epochs is None else epochs
    batch_size = found.batch_size if batch_size is None else batch_size
    threads = (found.threads or torch.get_num_threads()) if threads is None else threads
    counts = {"seeds": seeds, "epochs": epochs, "batch-size": batch_size, "threads": threads}
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
    if lr is not None and not (math.isfinite(lr) and lr > 0):
        raise ValueError(f"lr must be a finite number above 0, got {lr}")
    if switch_rate is not None and not 0 < switch_rate <= 1:
        raise ValueError(f"switch-rate must lie in (0, 1], got {switch_rate}")
    where = usable(device)
    for module in _NEEDED_LATER:
        importlib.import_module(module)

    samples = found.data(data)
    steps = _steps(samples, epochs, batch_size)
    setup = Setup(
        task=found,
        fingerprint=samples.fingerprint(),
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        switch_rate=switch_rate or min(1.0, 1.0 / (SWITCH_SHARE * steps)),
        device=where,
        threads=threads,
    )
    samples = samples.to(where)
    for recipe in recipes:
        _rehearse(recipe, setup, samples)
    return Study(setup, recipes, seeds, samples)


def execute(
    study: Study, results: Results, on_epoch: Callable[[Run], None] = lambda run: None
) -> Iterator[tuple[Run, Outcome, bool]]:
    """Yield every run with its outcome as it is there, and whether it was there already.

    Parameters
    ----------
    study : Study
        What to run.
    results : Results
        Where finished runs are looked up and kept.
    on_epoch : callable
        Called with the run after each epoch trained.
    """
    for run in study.runs():
        known = results.get(run)
        if known is not None:
            yield run, known, True
            continue
        outcome = train(
            run,
            study.data,
            lambda run=run: on_epoch(run),  # type: ignore[misc]
            results.directory,
        )
        results.add(run, outcome)
        yield run, outcome, False


def _steps(data: Data, epochs: int, batch_size: int) -> int:
    return epochs * math.ceil(len(data.train_targets) / batch_size)


def _rehearse(recipe: Recipe, setup: Setup, data: Data) -> None:
    """Build the optimizer on a throw-away model and take one step, so that no study dies later."""
    with torch.random.fork_rng(devices=[]):
        model = setup.task.model().to(setup.device)
    try:
        optimizer = recipe.build(model.parameters(), setup.lr, setup.switch_rate)
        recipe.schedule(optimizer, setup.switch_rate)
        batch = data.train_inputs[: setup.batch_size], data.train_targets[: setup.batch_size]
        step(model, optimizer, setup.task.loss, *batch)
    except Exception as error:
        reason = first_line(error)
        raise ValueError(f"{recipe.name} cannot train {setup.task.name}: {reason}") from error
