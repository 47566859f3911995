"""What is wrong in a user's task is said before anything is trained, with the user's own lines."""

import math
import random
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.utils.data import Dataset

from steppe.compare.metrics.scores import ACCURACY
from steppe.compare.planning.presets import USUAL
from steppe.compare.planning.rehearsal import new_model, rehearse
from steppe.compare.planning.study import StudyOptions, plan_study
from steppe.compare.tasks.task import Task
from steppe.compare.tasks.trace import TaskError
from steppe.compare.training.run import RunContext, RunSettings

SETTINGS = RunSettings("own", "", None, "", epochs=2, steps_per_epoch=3, batch_size=8)


def samples() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 4, generator=generator)
    return inputs, (inputs.sum(1) > 0).long()


def make_model() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))


Rehearsed = Callable[..., None]


@pytest.fixture
def rehearsed(context: RunContext) -> Rehearsed:
    """Make a task of a network for samples in two classes, with changes, and rehearse it."""

    def do(**changes: Any) -> None:
        content: dict[str, Any] = {
            "name": "own",
            "model": make_model,
            "train": samples,
            "validation": 0.2,
            "test": 0.2,
            "loss": F.cross_entropy,
            "metrics": {"accuracy": ACCURACY},
            **changes,
        }
        given = {name: value for name, value in content.items() if value is not None}
        made = Task(**given)
        rehearse(made.load(), new_model(made), SETTINGS, context)

    return do


def own_step(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def test_what_can_be_trained_passes_and_leaves_no_trace(
    rehearsed: Rehearsed, context: RunContext
) -> None:
    before = torch.get_rng_state()
    rehearsed()
    rehearsed(loss=None, metrics={}, step=own_step)
    rehearsed(schedule=lambda optimizer, steps: torch.optim.lr_scheduler.StepLR(optimizer, steps))
    rehearsed(
        schedule=lambda optimizer, steps: lr_scheduler.OneCycleLR(
            optimizer, [group["lr"] for group in optimizer.param_groups], total_steps=steps
        )
    )
    rehearsed(model=lambda: with_weights_of(np.random))
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.are_deterministic_algorithms_enabled()
    assert not context.out.exists()


class Annealed(nn.Module):
    """A weight of the loss that grows with a counter in a buffer, which checkpoints keep."""

    def __init__(self) -> None:
        super().__init__()
        self.map = make_model()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        return self.map(x) * self.calls


def test_a_counter_in_a_buffer_and_noise_of_global_generators_pass(rehearsed: Rehearsed) -> None:
    rehearsed(model=Annealed, loss=lambda x, y: F.cross_entropy(x + random.random(), y))


def unseeded() -> tuple[Tensor, Tensor]:
    return torch.randn(60, 4), torch.zeros(60, dtype=torch.long)


def one_over(number: int) -> float:
    return 1 / number


def failing(*_: Any) -> Any:
    return one_over(0)


def with_weights_of(generator: np.random.Generator) -> nn.Module:
    model = nn.Linear(4, 2)
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(generator.normal(size=(2, 4))))
    return model


def schedule_without_steps(optimizer: Any, steps: int) -> Any:
    return steps


def frozen() -> nn.Module:
    return make_model().requires_grad_(False)


def no_gradient(model: nn.Module, batch: Any) -> Tensor:
    with torch.no_grad():
        return own_step(model, batch)


def unrelated(model: nn.Module, batch: Any) -> Tensor:
    return torch.ones((), requires_grad=True) * 2


def not_a_number(outputs: Tensor, targets: Tensor) -> Tensor:
    return torch.full((len(outputs),), math.nan)


class Counting:
    """A step whose loss grows from call to call."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        self.calls += 1
        return own_step(model, batch) * self.calls


class OwnNoise(nn.Module):
    """Noise that no seed repeats."""

    def __init__(self) -> None:
        super().__init__()
        self.map, self.generator = make_model(), torch.Generator()

    def forward(self, x: Tensor) -> Tensor:
        return self.map(x + torch.randn(x.shape, generator=self.generator))


class Noisy(Dataset[tuple[Tensor, int]]):
    """Samples with noise of a generator of their own."""

    generator = np.random.default_rng(0)

    def __len__(self) -> int:
        return 60

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.full((4,), index / 60 + self.generator.normal()), index % 2


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "model fails": ({"model": failing}, r"model\(\) fails: ZeroDivisionError: division by zero"),
    "a counter of its own": (
        {"loss": None, "metrics": {}, "step": Counting()},
        r"step of the first batch is \S+, and \S+ when it is computed again with the same",
    ),
    "noise of its own": ({"model": OwnNoise}, "a counter or a generator of their own"),
    "augmentation of its own": (
        {"train": Noisy(), "plain": samples, "validation": samples, "test": samples},
        "a counter or a generator of their own",
    ),
    "weight is no number": (
        {"weight": lambda outputs, targets: targets},
        r"weight must return a number, got a Tensor of \(.*\)",
    ),
    "weight is negative": (
        {"weight": lambda outputs, targets: -1},
        r"weight must return a finite number of at least 0, got -1.0",
    ),
    "no model": ({"model": lambda: 3}, r"model\(\) must return a torch.nn.Module, got int"),
    "frozen": ({"model": frozen}, r"model\(\) has no parameter that requires a gradient"),
    "collate": ({"collate_fn": failing}, "a batch of train cannot be read: ZeroDivisionError"),
    "loss fails": ({"loss": failing}, "the loss of the first batch cannot be computed: ZeroDiv"),
    "step fails": (
        {"loss": None, "metrics": {}, "step": failing},
        "the step of the first batch cannot be computed: ZeroDivisionError",
    ),
    "shape": (
        {"model": lambda: nn.Linear(3, 2)},
        "the loss of the first batch cannot be computed: RuntimeError: mat1 and mat2 shapes",
    ),
    "float": ({"loss": lambda x, y: 0.5}, "loss must return a tensor, got float"),
    "rows": (
        {"loss": lambda x, y: F.cross_entropy(x, y, reduction="none")},
        r"loss must return one real number, .*, got a tensor of shape \(8,\): call .mean\(\)",
    ),
    "detached": (
        {"loss": None, "metrics": {}, "step": no_gradient},
        "step returns a number that no gradient flows through: it is detached",
    ),
    "unrelated": (
        {"loss": None, "metrics": {}, "step": unrelated},
        "step does not depend on any parameter of the model",
    ),
    "infinite": (
        {"loss": lambda x, y: F.cross_entropy(x, y) / 0},
        "loss of the first batch is inf, before any step",
    ),
    "schedule of its own lr": (
        {"schedule": lambda optimizer, n: lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=n)},
        "schedule sets lr to the same values whatever the optimizer's lr is",
    ),
    "weights of a generator of its own": (
        {"model": lambda: with_weights_of(np.random.default_rng())},
        r"model\(\) makes other weights \(weight\) when it is called again with the same seed",
    ),
    "schedule fails": ({"schedule": failing}, "schedule fails: ZeroDivisionError"),
    "no schedule": (
        {"schedule": schedule_without_steps},
        "schedule must return a scheduler of torch, got int",
    ),
    "metric fails": (
        {"metrics": {"odd": failing}},
        "validation cannot be evaluated: ZeroDivisionError: division by zero",
    ),
    "metric's shape": (
        {"metrics": {"mean": lambda x, y: (x.argmax(1) == y).double().mean()}},
        r"metric 'mean' must return a number for each of the 12 samples .*, got shape \(\)",
    ),
    "metric's value": (
        {"metrics": {"odd": not_a_number}},
        "metric 'odd' of validation is nan, expected a finite number",
    ),
    "second metric": (
        {"metrics": {"accuracy": ACCURACY, "odd": not_a_number}},
        "metric 'odd' of validation is nan, expected a finite number",
    ),
    "unseeded": (
        {"train": unseeded},
        r"train\(\) returns other samples the second time: seed what it draws",
    ),
    "labels": (
        {"train": {"input": samples()[0], "labels": samples()[1]}, "metrics": {}},
        "unexpected keyword argument 'labels': a mapping is passed as model.*batch., its labels",
    ),
    "plateau": (
        {"schedule": lambda optimizer, _: lr_scheduler.ReduceLROnPlateau(optimizer)},
        r"schedule's step\(\) fails: TypeError: .*'metrics'",
    ),
    "sum": (
        {"loss": lambda x, y: F.cross_entropy(x, y, reduction="sum")},
        r"loss is the sum over a batch \(.* for 12 samples\), not the mean",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_trained_is_said(rehearsed: Rehearsed, fault: str) -> None:
    changes, message = FAULTS[fault]
    with pytest.raises(TaskError, match=message) as caught:
        rehearsed(**changes)
    # The last of the user's own lines is the one that fails.
    if "ZeroDivisionError" in message:
        assert caught.value.__notes__[-1].endswith(" in one_over: return 1 / number")


def test_a_weighted_loss_is_no_sum(rehearsed: Rehearsed) -> None:
    for loss in (
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 4.0])),
        nn.CrossEntropyLoss(label_smoothing=0.1),
        lambda x, y: 100 * F.cross_entropy(x, y),
    ):
        rehearsed(loss=loss)


def test_a_study_of_an_own_task_is_rehearsed_when_it_is_planned(
    context: RunContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    path = tmp_path / "rehearsed_task.py"
    path.write_text(
        "import torch\nfrom torch import nn\nfrom steppe.compare import Task\n"
        "x = torch.linspace(-1, 1, 40)[:, None]\n"
        "def loss(outputs, targets):\n    return outputs.no_such_thing\n"
        "task = Task(name='line', model=lambda: nn.Linear(1, 1), train=(x, 2 * x),\n"
        "            validation=0.2, test=0.2, loss=loss)\n"
        "good = Task(name='line', model=lambda: nn.Linear(1, 1), train=(x, 2 * x), epochs=3,\n"
        "            validation=0.2, test=0.2, loss=nn.functional.mse_loss, batch_size=7)\n"
    )
    try:
        with pytest.raises(TaskError, match="the loss of the first batch cannot") as caught:
            plan_study(f"{path}:task", StudyOptions(["adamw"]), USUAL, context)
        assert caught.value.__notes__ == [f"  {path}:6 in loss: return outputs.no_such_thing"]
        study = plan_study(f"{path}:good", StudyOptions(["adamw"]), USUAL, context)
    finally:
        sys.modules.pop("rehearsed_task", None)
    setup = study.setup
    # 24 samples to train on, 8 each to validate and to test.
    counts = [study.facts[f"{part}_samples"] for part in ("train", "validation", "test")]
    assert counts == [24, 8, 8]
    assert (setup.epochs, setup.batch_size, setup.steps_per_epoch) == (3, 7, 4)
    assert (setup.task, study.location) == ("line", f"{path}:good")
    assert len(setup.source) > 8
    assert len(setup.fingerprint) == 16
    assert (study.metric.name, study.metric.higher_is_better) == ("mean loss", False)
    assert study.setup.model == "Linear"


def test_a_part_of_a_batch_that_cannot_be_trained_is_said(context: RunContext) -> None:
    """Of 60 samples 36 are trained on: of the last 4, three parts have 2, 2 and 0."""
    made = Task(
        name="own", model=make_model, train=samples, validation=0.2, test=0.2,
        loss=F.cross_entropy, metrics={"accuracy": ACCURACY},
    )  # fmt: skip
    loaded, model = made.load(), new_model(made)
    rehearse(loaded, model, replace(SETTINGS, accumulate=2), context)
    with pytest.raises(TaskError, match=r"^a part of 1 samples of an epoch's last batch"):
        rehearse(loaded, model, replace(SETTINGS, accumulate=4), context)


CONSTANT = torch.zeros(4)


class Centred(nn.Linear):
    """Begins at the mean of all samples, which it may change."""

    def __init__(self, changes: bool) -> None:
        super().__init__(4, 2)
        self.register_buffer("center", CONSTANT, persistent=changes)
        self.changes = changes

    def forward(self, x: Tensor) -> Tensor:
        if self.changes:
            self.center += x.detach().mean(0)
        return super().forward(x - self.center)


def test_a_constant_may_be_shared_by_all_models_and_what_they_change_not(
    rehearsed: Rehearsed,
) -> None:
    rehearsed(model=lambda: Centred(changes=False))
    with pytest.raises(TaskError, match=r"model\(\) returns models that share memory \(center\)"):
        rehearsed(model=lambda: Centred(changes=True))


def test_a_loss_of_one_element_is_a_scalar(rehearsed: Rehearsed) -> None:
    rehearsed(loss=lambda outputs, labels: F.cross_entropy(outputs, labels).reshape(1))
    rehearsed(loss=None, metrics={}, step=lambda model, batch: own_step(model, batch).reshape(1, 1))
