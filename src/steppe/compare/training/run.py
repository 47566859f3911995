"""One training run: what it is, and where it is trained."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import torch

from steppe._shared.hyperparameters import Settings
from steppe._shared.recipes import Recipe
from steppe._shared.source_hash import steppe_source
from steppe.compare.records.results import TEST

Precision = Literal["no", "bf16", "fp16"]
Schedule = Literal["constant", "cosine", "cosine-epochs"]

# What the cosine ends at, as a share of the peak; DualAdam's published runs end there.
_LAST_LR = 1e-3


@dataclass(frozen=True)
class RunSettings:
    """What is the same for every optimizer and seed of a study.

    Attributes
    ----------
    task, model : str
        What is trained.
    samples : int or None
        Training samples; None is all.
    fingerprint : str
        Of the data.
    epochs, steps_per_epoch, batch_size : int
        How long; of a stream's tasks, which may differ in length, the steps of the longest.
    accumulate : int, default 1
        Parts that a batch is cut into, their gradients summed up before the step.
    precision : "no", "bf16" or "fp16", default "no"
        Of autocast.
    clip : float or None, default None
        Largest L2 norm of the gradient.
    schedule : str, default "cosine"
        lr over the run: "constant", or half a cosine down to a thousandth, by steps or by epochs.
    warmup : float, default 0
        Share of the run's steps over which lr rises linearly, for every optimizer.
    length : int or None, default None
        Tokens of a sequence; None where samples are no text.
    stream : tuple of int, default empty
        Steps of an epoch of each task of a stream.
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
    schedule: Schedule = "cosine"
    warmup: float = 0.0
    length: int | None = None
    stream: tuple[int, ...] = ()

    @property
    def steps(self) -> int:
        """Training steps of one run."""
        return sum(map(self.steps_in, range(self.epochs)))

    def part(self, epoch: int) -> int:
        """Tell which task of a stream an epoch trains: each gets as many, one after the other.

        Examples
        --------
        >>> setup = Setup("5-dataset", "small-cnn", None, "", 4, 7, 32, stream=(7, 5))
        >>> [setup.part(epoch) for epoch in range(4)], setup.steps
        ([0, 0, 1, 1], 24)
        """
        return epoch * max(1, len(self.stream)) // self.epochs

    def steps_in(self, epoch: int) -> int:
        """Count the steps of an epoch."""
        return self.stream[self.part(epoch)] if self.stream else self.steps_per_epoch

    def rate(self, step: int) -> float:
        """Give the factor on lr at a step, counted from 0.

        Examples
        --------
        >>> setup = Setup("digits", "mlp", None, "", epochs=2, steps_per_epoch=4, batch_size=32)
        >>> [round(setup.rate(step), 3) for step in (0, 4, 8)]
        [1.0, 0.5, 0.001]
        """
        rising = min(1.0, (step + 1) / (self.warmup * self.steps)) if self.warmup else 1.0
        if self.schedule == "constant":
            return rising
        done = step / self.steps
        if self.schedule == "cosine-epochs":
            done = self._epoch_of(step) / self.epochs
        return rising * (_LAST_LR + (1 - _LAST_LR) * (1 + math.cos(math.pi * done)) / 2)

    def _epoch_of(self, step: int) -> int:
        if not self.stream:
            return step // self.steps_per_epoch
        ends = accumulate(map(self.steps_in, range(self.epochs)))
        return sum(step >= end for end in ends)


def run_settings_from_dict(content: Mapping[str, Any]) -> RunSettings:
    """Rebuild a setup from its fields, after JSON; what else is there is left aside."""
    known = {each.name: content[each.name] for each in fields(RunSettings) if each.name in content}
    return RunSettings(**{**known, "stream": tuple(known.get("stream", ()))})


@dataclass(frozen=True)
class Run:
    """One optimizer with its hyperparameters, one seed.

    Attributes
    ----------
    setup : RunSettings
        What all runs share.
    recipe : Recipe
        The optimizer.
    settings : mapping
        Its hyperparameters.
    seed : int
        Of weights and order.
    phase : str
        "tune", which never looks at the test set, or "test".
    """

    setup: RunSettings
    recipe: Recipe
    settings: Settings
    seed: int
    phase: str = TEST

    def rate(self, step: int) -> float:
        """Give the factor on lr at a step, the optimizer's own warm-up included."""
        if not self.recipe.warmup:
            return self.setup.rate(step)
        rising = (step + 1) / (self.settings["switch"] * self.setup.steps)
        return min(1.0, rising) * self.setup.rate(step)

    @property
    def label(self) -> str:
        """A file's name: runs that differ in anything have different ones."""
        content = {
            "source": steppe_source(),
            "torch": torch.__version__,
            "setup": asdict(self.setup),
            "optimizer": self.recipe.identity(),
            "settings": dict(self.settings),
        }
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]
        name = f"{self.setup.task}-{self.recipe.name}-{self.phase}-seed{self.seed}-{digest}"
        return name.replace(":", ".")


@dataclass(frozen=True)
class RunContext:
    """Where a run is trained.

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
        Where each run is logged too: "tensorboard", "mlflow", "wandb", or "".
    keep : bool, default True
        Whether each run leaves a checkpoint at its end.
    """

    out: Path
    device: str = "cpu"
    threads: int = 1
    data: Path | None = None
    track: str = ""
    keep: bool = True
