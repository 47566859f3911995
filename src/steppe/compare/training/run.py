"""A training run: its settings, its optimizer and seed, and where it is trained."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import torch

from steppe._shared.hyperparameters import Settings
from steppe._shared.recipes import Recipe
from steppe._shared.source_hash import steppe_source
from steppe.compare.records.choices import AnySchedule, CurvatureExtent, Precision, file_name
from steppe.compare.records.json_format import from_json
from steppe.compare.records.results import POOL
from steppe.compare.records.second_task import SecondTask
from steppe.compare.tasks.source import TaskSource
from steppe.compare.tasks.task import Task

# What the cosine ends at, as a share of the peak; DualAdam's published runs end there.
_LAST_LR = 1e-3


@dataclass(frozen=True)
class RunSettings:
    """The settings that all runs of a study share.

    Attributes
    ----------
    task, model : str
        Names of the task and its model.
    samples : int or None
        Training samples that were asked for; None is all.
    fingerprint : str
        Hash of the data.
    epochs, steps_per_epoch, batch_size : int
        Length of training; of a stream, the steps of its longest task.
    accumulate : int, default 1
        Parts that a batch is cut into; their gradients are summed up before the step.
    precision : "no", "bf16" or "fp16", default "no"
        Number format of autocast.
    clip : float or None, default None
        Gradients are clipped to this L2 norm; None for no clipping.
    schedule : str, default "cosine"
        lr over the run: "constant", or "cosine" to a thousandth of the peak; "cosine-epochs"
        changes it once an epoch; "own" is the task's.
    warmup : float, default 0
        Share of the run's steps in which lr rises linearly, for every optimizer.
    length : int or None, default None
        Tokens of a sequence; None where samples are no text.
    stream : tuple of int, default empty
        Steps per epoch of each task of a stream.
    options : mapping, default empty
        What was asked of the task, such as another model.
    source : str, default ""
        What :meth:`steppe.compare.tasks.source.TaskSource.identity` returned; "" of steppe's own.
    early_stopping : bool, default False
        Whether the weights of the best epoch by validation are evaluated, not the last one's.
    robustness : bool, default False
        Whether each run is measured with changed weights and inputs too.
    then : SecondTask or None, default None
        What each trained model is fine-tuned on.
    """

    task: str
    model: str
    samples: int | None
    fingerprint: str
    epochs: int
    steps_per_epoch: int
    batch_size: int
    accumulate: int = 1
    precision: Precision = "no"
    clip: float | None = None
    schedule: AnySchedule = "cosine"
    warmup: float = 0.0
    length: int | None = None
    stream: tuple[int, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    early_stopping: bool = False
    robustness: bool = False
    then: SecondTask | None = None

    @property
    def digest(self) -> str:
        """A hash of all settings."""
        content = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    @property
    def steps(self) -> int:
        """Training steps of one run."""
        return sum(map(self.steps_of_epoch, range(self.epochs)))

    def task_index(self, epoch: int) -> int:
        """Return the index of the stream's task that an epoch trains; 0 without a stream.

        All tasks get equally many epochs, one task after the other.

        Examples
        --------
        >>> of_stream = RunSettings("5-dataset", "small-cnn", None, "", 4, 7, 32, stream=(7, 5))
        >>> [of_stream.task_index(epoch) for epoch in range(4)], of_stream.steps
        ([0, 0, 1, 1], 24)
        """
        return epoch * max(1, len(self.stream)) // self.epochs

    def steps_of_epoch(self, epoch: int) -> int:
        """Return the number of steps of an epoch."""
        return self.stream[self.task_index(epoch)] if self.stream else self.steps_per_epoch

    def lr_factor(self, step: int) -> float:
        """Return the factor on lr at a step, counted from 0.

        Examples
        --------
        >>> digits = RunSettings("digits", "mlp", None, "", 2, steps_per_epoch=4, batch_size=32)
        >>> [round(digits.lr_factor(step), 3) for step in (0, 4, 8)]
        [1.0, 0.5, 0.001]
        """
        rising = self.rising(step)
        if self.schedule == "constant":
            return rising
        done = step / self.steps
        if self.schedule == "cosine-epochs":
            done = self._epoch_of(step) / self.epochs
        return rising * (_LAST_LR + (1 - _LAST_LR) * (1 + math.cos(math.pi * done)) / 2)

    def rising(self, step: int) -> float:
        """Return the warm-up's factor on lr at a step."""
        return min(1.0, (step + 1) / (self.warmup * self.steps)) if self.warmup else 1.0

    def _epoch_of(self, step: int) -> int:
        if not self.stream:
            return step // self.steps_per_epoch
        ends = accumulate(map(self.steps_of_epoch, range(self.epochs)))
        return sum(step >= end for end in ends)


def run_settings_from_dict(content: Mapping[str, Any]) -> RunSettings:
    """Rebuild settings from their fields, after JSON; other entries are ignored."""
    known = {each.name: content[each.name] for each in fields(RunSettings) if each.name in content}
    return from_json(RunSettings, known)


@dataclass(frozen=True)
class Run:
    """A run: one optimizer with its hyperparameters, one seed.

    Attributes
    ----------
    run_settings : RunSettings
        What all runs of the study share.
    recipe : Recipe
        The optimizer.
    settings : mapping
        The optimizer's hyperparameters.
    seed : int
        Seed of weights and data order.
    phase : str
        "pool", "default" or "recommended".
    curvature : "none", "quick" or "full", default "none"
        How much curvature is measured at the end; "full" measures some along the way too.
    """

    run_settings: RunSettings
    recipe: Recipe
    settings: Settings
    seed: int
    phase: str = POOL
    curvature: CurvatureExtent = "none"

    @cached_property
    def own_settings(self) -> RunSettings:
        """The study's settings, as this optimizer trains under them.

        With ``+2epochs`` they have twice the epochs, each task of a stream twice the passes:
        schedules, warm-ups and DualAdam's switch stretch with the run. Schedule-Free has a constant
        lr, and a warm-up of its own.

        Examples
        --------
        >>> from steppe._shared.recipes import find_recipe
        >>> digits = RunSettings("digits", "mlp", None, "", 2, steps_per_epoch=4, batch_size=32)
        >>> Run(digits, find_recipe("adamw+2epochs"), {"lr": 1e-3}, seed=0).own_settings.steps
        16
        """
        changes: dict[str, Any] = {"epochs": self.run_settings.epochs * self.recipe.epochs}
        if self.recipe.schedule_free:
            changes |= {"schedule": "constant", "warmup": 0.0}
        return replace(self.run_settings, **changes)

    def lr_factor(self, step: int) -> float:
        """Return the factor on lr at a step, with the optimizer's own warm-up."""
        return self._own_rising(step) * self.own_settings.lr_factor(step)

    def rising(self, step: int) -> float:
        """Return the factor of the study's warm-up, and of the optimizer's own."""
        return self._own_rising(step) * self.own_settings.rising(step)

    def _own_rising(self, step: int) -> float:
        if not self.recipe.warmup:
            return 1.0
        return min(1.0, (step + 1) / (self.settings["switch"] * self.own_settings.steps))

    @property
    def label(self) -> str:
        """A name for the run's files; runs that differ in anything have different names."""
        content = {
            "source": steppe_source(),
            "torch": torch.__version__,
            "setup": asdict(self.run_settings),
            "optimizer": self.recipe.identity(),
            "settings": dict(self.settings),
        }
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]
        parts = self.run_settings.task, self.recipe.name, self.phase, f"seed{self.seed}", digest
        return file_name("-".join(parts).replace(":", "."))


@dataclass(frozen=True)
class RunContext:
    """Where a run is trained, and what it leaves there.

    Attributes
    ----------
    out : Path
        Directory of checkpoints and logs.
    device : str, default "cpu"
        A torch device.
    threads : int, default 1
        CPU threads.
    data : Path or None, default None
        Directory of the task's files.
    track : str, default ""
        Tracker that logs each run: "tensorboard", "mlflow", "wandb", or "" for none.
    checkpoints : "recommended", "all" or None, default "recommended"
        Which runs save a checkpoint at their end; None is none.
    task : Task, TaskSource or str, default ""
        The task itself, or where it is here, as :func:`~steppe.compare.find_task` takes it.
        Default: where the study was planned.
    """

    out: Path
    device: str = "cpu"
    threads: int = 1
    data: Path | None = None
    track: str = ""
    checkpoints: Literal["recommended", "all"] | None = "recommended"
    task: Task | TaskSource | str = ""
