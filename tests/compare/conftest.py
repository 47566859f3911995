"""A task so small that training takes milliseconds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from steppe.compare import tasks
from steppe.compare.data import Data, Tensors
from steppe.compare.optimizers import find_recipe
from steppe.compare.run import Place, Run, Setup
from steppe.compare.spaces import find_defaults, find_space
from steppe.compare.tasks import Size, Task
from steppe.names import named


def _toy_data() -> Data:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(39, 1, 2, 2, generator=generator)
    targets = (inputs.sum(dim=(1, 2, 3)) > 0).long()
    train = Tensors(inputs[:21], targets[:21])
    return Data(
        train,
        train,
        Tensors(inputs[21:30], targets[21:30]),
        Tensors(inputs[30:], targets[30:]),
        "toy",
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


@pytest.fixture
def toy_task(monkeypatch: pytest.MonkeyPatch) -> Task:
    """Make the task "toy" known, and its models: "linear" with 10 parameters, and "noisy"."""
    models = {
        "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 2)),
        "noisy": lambda: Noisy(1, 2),
    }
    size = Size("linear", epochs=2, batch_size=5)
    task = Task("toy", _toy_data, lambda name: named("model", name, models)(), size, size)
    monkeypatch.setitem(tasks.TASKS, "toy", task)
    return task


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "out")


@pytest.fixture
def make_run(toy_task: Task) -> Callable[..., Run]:
    """Make a run of the toy task at an optimizer's defaults; settings and setup may be changed."""

    def make(
        name: str = "adamw",
        seed: int = 0,
        phase: str = "test",
        settings: dict[str, float] | None = None,
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
        }
        recipe = find_recipe(name)
        defaults = find_defaults(recipe, find_space(recipe, settings))
        return Run(
            Setup(**{**setup, **changes}), recipe, {**defaults, **(settings or {})}, seed, phase
        )

    return make
