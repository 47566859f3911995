"""Tasks so small that training takes milliseconds."""

import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from sqlalchemy import Engine, event
from torch import nn

from helpers.training_runs import LITTLE_CURVATURE
from steppe._shared.names import look_up
from steppe._shared.recipes import find_recipe
from steppe.compare.data import text
from steppe.compare.data.datasets import Data, TensorSamples
from steppe.compare.data.streams import arrange_stream
from steppe.compare.metrics.curvature import DEFAULT_CURVATURE
from steppe.compare.metrics.scores import PERPLEXITY, token_loss
from steppe.compare.models.language_models import LSTM, Transformer
from steppe.compare.planning.search_spaces import find_defaults, find_space
from steppe.compare.records import choices
from steppe.compare.records.choices import CurvatureExtent
from steppe.compare.records.results import POOL
from steppe.compare.tasks import makers
from steppe.compare.tasks.makers import Size, TaskMaker
from steppe.compare.training.run import Run, RunContext, RunSettings


@pytest.fixture(autouse=True, scope="session")
def _hurried_files() -> Iterator[None]:
    """Leave out what SQLite does for power failures: waiting for the disk takes longer than all."""

    def hurry(connection: Any, record: Any) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.execute("PRAGMA synchronous = OFF")

    event.listen(Engine, "connect", hurry)
    yield
    event.remove(Engine, "connect", hurry)


def _toy_data() -> Data:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(39, 1, 2, 2, generator=generator)
    targets = (inputs.sum(dim=(1, 2, 3)) > 0).long()
    return Data(
        TensorSamples(inputs[:21], targets[:21]),
        TensorSamples(inputs[21:30], targets[21:30]),
        TensorSamples(inputs[30:], targets[30:]),
        fingerprint="toy",
    )


class Noisy(nn.Module):
    """Augments its inputs at random, drops out, and keeps running statistics."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            # A bias before the normalisation has no gradient but rounding, which Adam blows up.
            nn.Conv2d(channels, 3, 2, padding=1, bias=False),
            nn.BatchNorm2d(3),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(27, classes),
        )

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return one row of class scores a sample."""
        if self.training:
            inputs = inputs + 0.1 * torch.randn_like(inputs)
        scores: torch.Tensor = self.body(inputs)
        return scores


@pytest.fixture
def toy_data() -> Data:
    return _toy_data()


def make_known(monkeypatch: pytest.MonkeyPatch, task: TaskMaker) -> None:
    """Let a task be found by its name, and the commands take the name."""
    monkeypatch.setitem(makers.TASKS, task.name, task)
    monkeypatch.setattr(choices, "TASK_NAMES", (*choices.TASK_NAMES, task.name))


@pytest.fixture
def toy_task(monkeypatch: pytest.MonkeyPatch) -> TaskMaker:
    """Make the task "toy" known, and its models: "linear" with 10 parameters, and "noisy"."""
    models = {
        "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 2)),
        "noisy": lambda: Noisy(1, 2),
    }
    size = Size("linear", epochs=2, batch_size=5)
    task = TaskMaker(
        "toy",
        _toy_data,
        lambda name: look_up("model", name, models)(),
        size,
        size,
        curvature=LITTLE_CURVATURE,
    )
    make_known(monkeypatch, task)
    return task


@pytest.fixture
def toy_curvature(toy_task: TaskMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the curvature of the toy task be measured as that of others is."""
    make_known(monkeypatch, replace(makers.TASKS["toy"], curvature=DEFAULT_CURVATURE))


def _toy_text(*, length: int = 50) -> Data:
    """Make a text of numbers that go up by one or two: what comes next can be learnt."""
    generator = torch.Generator().manual_seed(5)
    ups = torch.randint(1, 3, (2_100,), generator=generator)
    parts = (ups.cumsum(0) % 11).split([1_101, 601, 398])
    train, validation, test = (text.blocks(part, length) for part in parts)
    return Data(train, validation, test, fingerprint="toy-text")


@pytest.fixture
def toy_text(monkeypatch: pytest.MonkeyPatch) -> TaskMaker:
    """Make the task "toy-text" known: 22, 12 and 7 blocks of 50 words, of 11 that there are.

    Its models, "lstm" and "transformer", drop out.
    """
    models = {
        "lstm": partial(LSTM, 11, width=6, depth=2, dropout=0.2, bound=0.4),
        "transformer": partial(Transformer, 11, width=8, depth=1, heads=2, dropout=0.1),
    }
    size = Size("lstm", epochs=3, batch_size=4, length=50)
    task = TaskMaker(
        "toy-text",
        _toy_text,
        lambda name: look_up("model", name, models)(),
        size,
        size,
        loss=token_loss,
        metrics=(("perplexity", PERPLEXITY),),
        subsample=text.subsample,
        curvature=LITTLE_CURVATURE,
    )
    make_known(monkeypatch, task)
    return task


def _toy_stream() -> Data:
    """Make three tasks of two classes, each with a rule of its own, in any order."""
    generator = torch.Generator().manual_seed(7)
    rules = torch.randn(3, 4, generator=generator)

    def samples(counts: list[int]) -> TensorSamples:
        of = torch.repeat_interleave(torch.arange(3), torch.tensor(counts))
        of = of[torch.randperm(len(of), generator=generator)]
        inputs = torch.randn(len(of), 4, generator=generator)
        return TensorSamples(inputs, 2 * of + ((inputs * rules[of]).sum(1) > 0))

    parts = [samples(counts) for counts in ([11, 5, 8], [4, 6, 5], [3, 7, 6])]
    return arrange_stream(*parts, classes=2, fingerprint="toy-stream")


@pytest.fixture
def toy_stream(monkeypatch: pytest.MonkeyPatch) -> TaskMaker:
    """Make the task "toy-stream" known, and its model "net", which drops out."""
    models = {
        "net": lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 6))
    }
    size = Size("net", epochs=6, batch_size=4)
    task = makers._stream(
        "toy-stream",
        _toy_stream,
        classes=2,
        make=lambda name: look_up("model", name, models)(),
        full=size,
        small=size,
    )
    make_known(monkeypatch, task)
    return task


@pytest.fixture
def context(tmp_path: Path) -> RunContext:
    return RunContext(tmp_path / "out")


@pytest.fixture
def make_run(toy_task: TaskMaker) -> Callable[..., Run]:
    """Make a run of the toy task at an optimizer's defaults; settings and setup may be changed.

    Its curvature is measured in full, hence its checkpoint is saved.
    """

    def make(
        name: str = "adamw",
        seed: int = 0,
        phase: str = POOL,
        settings: dict[str, float] | None = None,
        curvature: CurvatureExtent = "full",
        **changes: Any,
    ) -> Run:
        setup: dict[str, Any] = {
            "task": "toy",
            "model": "linear",
            "samples": None,
            "fingerprint": "toy",
            "epochs": 2,
            "steps_per_epoch": 5,
            "batch_size": 5,
            "schedule": "constant",
            **changes,
        }
        asked = {"model": setup["model"], "samples": setup["samples"]}
        options = {name: value for name, value in asked.items() if value is not None}
        recipe = find_recipe(name)
        defaults = find_defaults(recipe, find_space(recipe, settings))
        return Run(
            RunSettings(**setup, options=options),
            recipe,
            {**defaults, **(settings or {})},
            seed,
            phase,
            curvature,
        )

    return make
