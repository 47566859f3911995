"""Averages, modes, longer runs: what is evaluated is what the name says, against plain loops."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import schedulefree
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.training_runs import by_hand, numbers, seeds, train_on
from steppe._shared.recipes import Recipe
from steppe.compare.data.datasets import Data, Samples
from steppe.compare.metrics.curvature import DEFAULT_CURVATURE, measure_quickly
from steppe.compare.records.results import Outcome
from steppe.compare.tasks import makers
from steppe.compare.tasks.makers import TaskMaker
from steppe.compare.training import checkpoint
from steppe.compare.training.run import Run, RunContext

MakeRun = Callable[..., Run]
CPU = torch.device("cpu")


def evaluated(model: nn.Module, samples: Samples) -> tuple[float, float]:
    with torch.no_grad():
        outputs = model.eval()(samples.inputs)
    right = (outputs.argmax(1) == samples.targets).double().mean()
    return F.cross_entropy(outputs, samples.targets).item(), right.item()


def saved(run: Run, context: RunContext) -> dict[str, Any]:
    return checkpoint.load(checkpoint.checkpoint_path(context.out, run), CPU)


def start(run: Run, task: TaskMaker) -> nn.Module:
    torch.manual_seed(seeds(run, -1))
    return task.make(run.run_settings.model)


def check_epochs(outcome: Outcome, expected: Iterator[tuple[float, float, float]]) -> None:
    """Compare each epoch's train loss, validation loss and validation score."""
    for epoch, wanted in zip(outcome.curve, expected, strict=True):
        found = epoch.train_loss, epoch.validation_loss, epoch.validation_score
        assert found == pytest.approx(wanted, abs=1e-5)


def check_final(outcome: Outcome, model: nn.Module, data: Data) -> None:
    final = outcome.final
    for found, samples in (
        ((final.train_loss, final.train_score), data.train),
        ((final.validation_loss, final.validation_score), data.validation),
        ((final.test_loss, final.test_score), data.test),
    ):
        assert found == pytest.approx(evaluated(model, samples), abs=1e-5)


@pytest.mark.usefixtures("toy_curvature")
def test_an_average_is_that_of_a_loop_in_float64(
    make_run: MakeRun, toy_task: TaskMaker, toy_data: Data, context: RunContext
) -> None:
    """350 steps, so a window of round(3.5) = 4; with running statistics, which are averaged too."""
    settings = {"lr": 0.05, "weight_decay": 0.1}
    run = make_run("adamw+ema", settings=settings, model="noisy", epochs=70, schedule="cosine")
    outcome = train_on(run, toy_data, context)
    model, averaged = start(run, toy_task), toy_task.make("noisy")
    optimizer = torch.optim.AdamW(model.parameters(), **settings)
    average: dict[str, Tensor] = {}

    def step(number: int, inputs: Tensor, targets: Tensor) -> float:
        optimizer.param_groups[0]["lr"] = settings["lr"] * run.run_settings.lr_factor(number)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        for name, value in model.state_dict().items():
            exact = value.double()
            average[name] = 0.75 * average.get(name, exact) + 0.25 * exact
        return loss.item()

    def epochs() -> Iterator[tuple[float, float, float]]:
        for train_loss in by_hand(run, model, toy_data.train, step):
            # Nothing divides a count of batches.
            average["body.1.num_batches_tracked"] = model.body[1].num_batches_tracked
            averaged.load_state_dict(average)
            yield train_loss, *evaluated(averaged, toy_data.validation)

    check_epochs(outcome, epochs())
    check_final(outcome, averaged, toy_data)
    content = saved(run, context)["model"]
    for name, value in average.items():
        torch.testing.assert_close(content[name].double(), value.double(), rtol=1e-4, atol=1e-5)
    assert content["body.1.num_batches_tracked"] == 350
    # Its curvature is measured, with the preconditioner that the run ended with.
    batches = [(toy_data.train.inputs, toy_data.train.targets)]
    curvature = measure_quickly(averaged, F.cross_entropy, batches)
    assert outcome.curvature.largest == pytest.approx(curvature.largest, rel=0.02)
    assert outcome.curvature.sharpness == pytest.approx(curvature.sharpness, rel=1e-3)
    assert outcome.curvature.preconditioned > 0
    # It is an average, and not the last weights.
    assert (content["body.4.weight"] - model.body[4].weight).abs().max() > 1e-6


def test_a_short_runs_average_is_its_last_weights(
    make_run: MakeRun, toy_data: Data, context: RunContext
) -> None:
    """Ten steps have a window of one."""
    averaged = train_on(make_run("adamw+ema", model="noisy"), toy_data, context)
    assert numbers(averaged) == numbers(
        train_on(make_run("adamw", model="noisy"), toy_data, context)
    )


def test_an_averages_memory_counts(make_run: MakeRun, toy_data: Data, context: RunContext) -> None:
    costs = [train_on(make_run(name), toy_data, context).costs for name in ("adamw", "adamw+ema")]
    assert costs[1].state_bytes == pytest.approx(costs[0].state_bytes + 4)


def test_schedule_free_is_its_package_used_by_hand(
    make_run: MakeRun, toy_task: TaskMaker, toy_data: Data, context: RunContext
) -> None:
    """No schedule and no warm-up of the study, its own warm-up of 2 % of 150 steps."""
    settings = {"lr": 0.05, "weight_decay": 0.1}
    changes = {"epochs": 30, "schedule": "cosine", "warmup": 0.5}
    run = make_run("schedule-free", settings=settings, model="noisy", **changes)
    outcome = train_on(run, toy_data, context)
    model = start(run, toy_task)
    optimizer = schedulefree.AdamWScheduleFree(model.parameters(), **settings, warmup_steps=3)

    def step(number: int, inputs: Tensor, targets: Tensor) -> float:
        optimizer.train()
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        return loss.item()

    def epochs() -> Iterator[tuple[float, float, float]]:
        for train_loss in by_hand(run, model, toy_data.train, step):
            optimizer.eval()
            yield train_loss, *evaluated(model, toy_data.validation)

    check_epochs(outcome, epochs())
    check_final(outcome, model, toy_data)
    assert {epoch.lr for epoch in outcome.curve} == {0.05}
    content = saved(run, context)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(content["model"][name], value, rtol=1e-4, atol=1e-5)
    assert not content["optimizer_state"]["param_groups"][0]["train_mode"]


class Modal(torch.optim.SGD):
    """Adds 100 to every parameter for evaluation, and keeps a record."""

    events: list[str]

    def __init__(self, params, lr=0.1) -> None:
        super().__init__(params, lr=lr)
        Modal.events = []
        self.add = 0.0

    def move(self, add: float) -> None:
        with torch.no_grad():
            for param in self.param_groups[0]["params"]:
                param.add_(add - self.add)
        self.add = add

    def train(self) -> None:
        Modal.events.append("train")
        self.move(0.0)

    def eval(self) -> None:
        Modal.events.append("eval")
        self.move(100.0)

    def step(self, closure=None):
        Modal.events.append("step")
        return super().step(closure)


@pytest.mark.parametrize("sam", [False, True])
def test_any_optimizer_with_modes_is_switched_around_training(
    make_run: MakeRun, toy_data: Data, context: RunContext, sam: bool
) -> None:
    run = replace(make_run("sgd+sam"), recipe=Recipe("modal", Modal, sam="sam" if sam else ""))

    def note(number: int, epoch: object) -> None:
        assert Modal.events[-1] == "eval"
        progress = checkpoint.read(checkpoint.progress_path(context.out, run), CPU)
        assert progress["model"]["1.bias"].min() > 90
        Modal.events.append("saved")

    train_on(run, toy_data, context, note)
    assert Modal.events == ["train", *["step"] * 5, "eval", "saved"] * 2
    assert saved(run, context)["model"]["1.bias"].min() > 90


@pytest.mark.parametrize("name", ["adamw", "dualadam", "adam+warmup", "adamw+ema", "sgd+sam"])
def test_twice_the_epochs_is_a_run_that_was_planned_so(
    make_run: MakeRun, toy_data: Data, context: RunContext, name: str
) -> None:
    """The schedule, the warm-up and the switch stretch too, to the last bit."""
    changes = {"model": "noisy", "schedule": "cosine", "warmup": 0.2}
    doubled = make_run(f"{name}+2epochs", epochs=3, **changes)
    planned = make_run(name, epochs=6, **changes)
    found, expected = (train_on(run, toy_data, context) for run in (doubled, planned))
    assert numbers(found) == numbers(expected)
    assert found.costs.gradients == expected.costs.gradients
    assert saved(doubled, context)["steps"] == 30


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sgd", 10),
        ("adamw+2epochs", 20),
        ("sgd+sam", 20),
        ("adamcm+ema", 10),
    ],
)
@pytest.mark.parametrize("parts", [1, 3])
def test_gradients_are_counted(
    make_run: MakeRun, toy_data: Data, context: RunContext, name: str, expected: int, parts: int
) -> None:
    run = make_run(name, accumulate=parts)
    assert train_on(run, toy_data, context).costs.gradients == expected


def test_lbfgs_is_charged_for_every_gradient(
    make_run: MakeRun, toy_task: TaskMaker, toy_data: Data, context: RunContext,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    calls: list[int] = []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        # Evaluation has no gradients, and curvature more samples than a batch.
        if torch.is_grad_enabled() and len(targets) <= 5:
            calls.append(len(targets))
        return F.cross_entropy(outputs, targets)

    monkeypatch.setitem(
        makers.TASKS, "toy", replace(toy_task, loss=loss, curvature=DEFAULT_CURVATURE)
    )
    outcome = train_on(make_run("lbfgs"), toy_data, context)
    assert outcome.costs.gradients == len(calls) > 10
