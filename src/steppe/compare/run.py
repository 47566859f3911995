"""One training run: what it is, and what came of it."""

import json
import math
from dataclasses import dataclass
from typing import Any

import torch

import steppe
from steppe.compare.curvature import Curvature
from steppe.compare.optimizers import Recipe
from steppe.compare.sources import steppe_source
from steppe.compare.tasks import Task


@dataclass(frozen=True)
class Setup:
    """What is the same for every optimizer and seed of a comparison.

    Attributes
    ----------
    task : Task
        What is trained.
    fingerprint : str
        Of the data.
    epochs, batch_size : int
        How long.
    lr : float or None
        For every optimizer; None leaves each its own default.
    switch_rate : float
        ξ of DualAdam; its inverse is the number of warm-up steps of ``+warmup``.
    device : torch.device
        Where.
    threads : int
        CPU threads. They change the order of sums, hence the last digits.
    """

    task: Task
    fingerprint: str
    epochs: int
    batch_size: int
    lr: float | None
    switch_rate: float
    device: torch.device
    threads: int


@dataclass(frozen=True)
class Run:
    """One optimizer, one seed."""

    setup: Setup
    recipe: Recipe
    seed: int

    @property
    def settings(self) -> str:
        """Everything that the run's numbers depend on, as JSON: the run's identity."""
        setup = self.setup
        settings: dict[str, Any] = {
            "task": setup.task.name,
            "data": setup.fingerprint,
            "epochs": setup.epochs,
            "batch_size": setup.batch_size,
            "device": str(setup.device),
            "threads": setup.threads,
            "seed": self.seed,
            "optimizer": self.recipe.settings(setup.lr, setup.switch_rate),
            "torch": torch.__version__,
            "steppe": [steppe.__version__, steppe_source()],
        }
        return json.dumps(settings, sort_keys=True)


@dataclass(frozen=True)
class Epoch:
    """Where a run stood after an epoch: means over all samples, in ``eval()`` mode."""

    train_loss: float
    test_loss: float
    test_accuracy: float


@dataclass(frozen=True)
class Outcome:
    """What came of a run.

    Attributes
    ----------
    curve : tuple of Epoch
        One per finished epoch.
    diverged : bool
        Whether a loss was not finite; the run ended there.
    curvature : Curvature
        Of the training loss at the end; NaN if the run diverged or ended where derivatives are not
        finite.
    step_ms : float
        Median wall time of a training step (forward, backward, update) in milliseconds.
    state_bytes : float
        Optimizer state, in bytes per trainable parameter.
    """

    curve: tuple[Epoch, ...]
    diverged: bool
    curvature: Curvature
    step_ms: float
    state_bytes: float

    @property
    def final(self) -> Epoch:
        """The last epoch; all NaN if the run diverged."""
        return Epoch(math.nan, math.nan, math.nan) if self.diverged else self.curve[-1]
