"""Runs ended early, and what must repeat when they go on."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from steppe.compare.data.datasets import Data, Samples
from steppe.compare.metrics.curvature import CurvatureSettings
from steppe.compare.records.results import Outcome
from steppe.compare.tasks.makers import TASKS
from steppe.compare.tasks.source import find_task
from steppe.compare.tasks.task import LoadedTask
from steppe.compare.training.run import Run, RunContext
from steppe.compare.training.train import train

#: At the end of small runs curvature takes longer than training.
LITTLE_CURVATURE = CurvatureSettings(samples=2, tol=0.1, max_products=12, often=False, full=False)


def measure_little(patch: pytest.MonkeyPatch, task: str) -> None:
    """Have little curvature measured of a task's runs."""
    patch.setitem(TASKS, task, replace(TASKS[task], curvature=LITTLE_CURVATURE))


def task_of(run: Run, data: Data) -> LoadedTask:
    """Return the task that a run names, and these samples."""
    setup = run.run_settings
    return LoadedTask(find_task(setup.task).task(setup.options), data)


def train_on(run: Run, data: Data, context: RunContext, *rest: Any, **options: Any) -> Outcome:
    """Train the task that a run names on these samples; the rest is as for ``train``."""
    return train(run, task_of(run, data), context, *rest, **options)


class KillError(Exception):
    """Ends a run as a kill would, once its file is written."""


def killed_after(epoch: int, seen: list[int]) -> Callable[[int, object], None]:
    """Note each epoch, and end the run after this one."""

    def on_epoch(number: int, _: object) -> None:
        seen.append(number)
        if number == epoch:
            raise KillError

    return on_epoch


def numbers(outcome: Outcome) -> str:
    """Give everything that must repeat, to the last bit; seconds need not."""
    curve = [replace(epoch, seconds=0.0) for epoch in outcome.curve]
    return repr((curve, outcome.final, outcome.samples, outcome.curvature, outcome.diverged))


def seeds(run: Run, epoch: int) -> int:
    """Give the seed of an epoch; that of the weights is the one before the first."""
    return run.seed * 1_000_003 + epoch + 1


def batches_of(run: Run, epoch: int, samples: Samples) -> Iterator[list[Tensor]]:
    """Draw an epoch's batches, and its dropout, with torch alone."""
    torch.manual_seed(seeds(run, epoch))
    order = torch.Generator().manual_seed(seeds(run, epoch))
    whole = TensorDataset(samples.inputs, samples.targets)
    yield from DataLoader(whole, run.run_settings.batch_size, True, generator=order)


def by_hand(
    run: Run, model: nn.Module, samples: Samples, step: Callable[[int, Tensor, Tensor], float]
) -> Iterator[float]:
    """Go through a run's batches with torch alone; yield each epoch's mean loss."""
    steps = 0
    for epoch in range(run.run_settings.epochs):
        model.train()
        total = 0.0
        for inputs, targets in batches_of(run, epoch, samples):
            total += step(steps, inputs, targets) * len(targets)
            steps += 1
        model.eval()
        yield total / len(samples)
