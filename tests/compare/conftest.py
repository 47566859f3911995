"""A task so small that a whole study takes milliseconds."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from steppe.compare.curvature import Curvature
from steppe.compare.data import Data
from steppe.compare.optimizers import find_recipe
from steppe.compare.run import Epoch, Outcome, Run, Setup
from steppe.compare.study import Study
from steppe.compare.tasks import Task


def _toy_data() -> Data:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(30, 4, generator=generator)
    targets = (inputs.sum(dim=1) > 0).long()
    return Data(inputs[:21], targets[:21], inputs[21:], targets[21:])


@pytest.fixture
def toy_data() -> Data:
    return _toy_data()


@pytest.fixture
def make_setup() -> Callable[..., Setup]:
    def make(**changes: Any) -> Setup:
        task = Task("toy", _toy_data, lambda: nn.Linear(4, 2), epochs=2, batch_size=5)
        defaults: dict[str, Any] = {
            "task": task,
            "fingerprint": "toy",
            "epochs": 2,
            "batch_size": 5,
            "lr": None,
            "switch_rate": 0.25,
            "device": torch.device("cpu"),
            "threads": 1,
        }
        return Setup(**{**defaults, **changes})

    return make


@pytest.fixture
def make_run(make_setup: Callable[..., Setup]) -> Callable[..., Run]:
    def make(name: str = "adamw", seed: int = 0, **changes: Any) -> Run:
        return Run(make_setup(**changes), find_recipe(name), seed)

    return make


@pytest.fixture
def make_study(make_setup: Callable[..., Setup], toy_data: Data) -> Callable[..., Study]:
    def make(*names: str, seeds: int = 3, **changes: Any) -> Study:
        return Study(make_setup(**changes), tuple(map(find_recipe, names)), seeds, toy_data)

    return make


@pytest.fixture
def outcome() -> Callable[..., Outcome]:
    """Make outcomes of two epochs that ended in the given accuracy and losses."""

    def make(
        accuracy: float = 0.9, test_loss: float = 0.3, train_loss: float = 0.1, **changes: Any
    ) -> Outcome:
        defaults: dict[str, Any] = {
            "curve": (Epoch(2.0, 2.0, 0.1), Epoch(train_loss, test_loss, accuracy)),
            "diverged": False,
            "curvature": Curvature(0.01, 2.0, 3.0, 400.0, 38_000.0),
            "step_ms": 1.5,
            "state_bytes": 8.0,
        }
        return Outcome(**{**defaults, **changes})

    return make
