"""A task refuses what cannot be trained, and calls the model as its batches ask for."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steppe.compare.data.datasets import Data, TensorSamples
from steppe.compare.metrics.scores import ACCURACY, Metric
from steppe.compare.tasks.task import Task, targets_of


def make_model() -> nn.Module:
    return nn.Linear(2, 3)


SAMPLES = (torch.zeros(10, 2), torch.zeros(10, 3))
LEAST: dict[str, Any] = {
    "name": "toy",
    "model": make_model,
    "train": SAMPLES,
    "validation": 0.2,
    "test": 0.2,
    "loss": F.mse_loss,
}


def made(**changes: Any) -> Task:
    """Make a task of what is needed at least; None leaves an argument out."""
    content = {**LEAST, **changes}
    return Task(**{name: value for name, value in content.items() if value is not None})


def load() -> Data:
    samples = TensorSamples(*SAMPLES)
    return Data(samples, samples, samples, fingerprint="0")


NO_PARTS = {"train": None, "validation": None, "test": None}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"name": ""}, ValueError, "name='' must be a text of 1 to 100 characters"),
        ({"name": " "}, ValueError, "name=' ' must be a text of 1 to 100"),
        ({"name": "x" * 101}, ValueError, "must be a text of 1 to 100 characters"),
        ({"name": 3}, ValueError, "name=3 must be a text"),
        (
            {"model": nn.Linear(2, 3)},
            TypeError,
            "model must be a function that returns a new model, got Linear: each run trains",
        ),
        ({"model": "resnet18"}, TypeError, "model must be a function .*, got str"),
        ({"loss": "mse"}, TypeError, "loss must be a function, got str"),
        ({"loss": None, "step": 3}, TypeError, "step must be a function, got int"),
        ({"predict": 3}, TypeError, "predict must be a function, got int"),
        ({"collate_fn": [1]}, TypeError, "collate_fn must be a function, got list"),
        ({"schedule": "cosine"}, TypeError, "schedule must be a function, got str"),
        ({"data": load(), **NO_PARTS}, TypeError, "data must be a function, got Data"),
        ({"epochs": 0}, ValueError, "epochs=0 must be an integer of at least 1"),
        ({"epochs": 2.0}, ValueError, "epochs=2.0 must be an integer of at least 1"),
        ({"epochs": True}, ValueError, "epochs=True must be an integer of at least 1"),
        ({"batch_size": -1}, ValueError, "batch_size=-1 must be an integer of at least 1"),
        ({"loaders": -1}, ValueError, "loaders=-1 must be an integer of at least 0"),
        ({"max_grad_norm": 0.0}, ValueError, "max_grad_norm=0.0 must be a finite number above 0"),
        (
            {"max_grad_norm": math.nan},
            ValueError,
            "max_grad_norm=nan must be a finite number above 0",
        ),
        ({"metrics": [ACCURACY]}, TypeError, "metrics must be a dict of names to metrics"),
        ({"metrics": {1: ACCURACY}}, TypeError, "metrics must be a dict of names to metrics"),
        ({"metrics": {"hits": 3}}, TypeError, "values=3 must be a function of outputs and"),
        ({"step": make_model}, ValueError, "step computes the loss: leave loss out"),
        (
            {"loss": None, "step": make_model, "metrics": {"accuracy": ACCURACY}},
            ValueError,
            r"give predict=f\(model, batch\) if there are metrics",
        ),
        ({"validation": None}, ValueError, "validation must be given too: samples, or a share"),
        ({"train": None, "test": None}, ValueError, "train, test must be given too"),
        ({"data": load}, ValueError, "data returns all samples: leave train, validation, test out"),
        ({"data": load, **NO_PARTS, "plain": SAMPLES}, ValueError, "leave plain out"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_trained_is_refused(changes, error, message: str) -> None:
    with pytest.raises(error, match=message):
        made(**changes)


def test_no_samples_are_read_before_they_are_loaded() -> None:
    def never() -> Any:
        raise AssertionError

    made(train=never, validation=never, test=never)
    made(**NO_PARTS, data=never)


def test_without_metrics_the_loss_is_the_score() -> None:
    score = made().score
    assert (score.name, score.higher_is_better, score.of_mean) == ("mean loss", False, "itself")


def test_the_first_metric_is_the_score_and_functions_become_metrics() -> None:
    def worth(outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.sum(1)

    task = made(metrics={"worth": worth, "root": Metric(worth, False, of_mean="root", unit="m")})
    assert task.metrics["worth"] == Metric(worth)
    assert (task.score.name, task.score.higher_is_better) == ("worth", True)
    reverse = made(metrics=dict(reversed(task.metrics.items())))
    assert (reverse.score.name, reverse.score.unit, reverse.score.of_mean) == ("root", "m", "root")


class Called(nn.Module):
    """Returns what it was called with."""

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return inputs, named


ONE, TWO, TARGETS = torch.ones(4), torch.full((4,), 2.0), torch.arange(4)


@pytest.mark.parametrize(
    ("batch", "called"),
    [
        ((ONE, TARGETS), ((ONE,), {})),
        ([ONE, TARGETS], ((ONE,), {})),
        (((ONE, TWO), TARGETS), ((ONE, TWO), {})),
        ([[ONE, TWO], TARGETS], ((ONE, TWO), {})),
        (({"a": ONE, "b": TWO}, TARGETS), ((), {"a": ONE, "b": TWO})),
    ],
    ids=["pair", "list", "several inputs", "list of inputs", "named inputs"],
)
def test_of_a_pair_the_first_goes_to_the_model(batch, called) -> None:
    outputs, targets = made().outputs(Called(), batch)
    assert outputs == called
    assert targets is TARGETS


def test_a_mapping_goes_to_the_model_whole_and_is_its_own_targets() -> None:
    batch = {"ids": ONE, "labels": TARGETS}
    outputs, targets = made().outputs(Called(), batch)
    assert outputs == ((), batch)
    assert targets is batch


@pytest.mark.parametrize(
    ("batch", "described"),
    [
        (ONE, "a Tensor"),
        ((ONE, TWO, TARGETS), "a tuple of 3"),
        ([ONE], "a list of 1"),
        (SimpleNamespace(x=ONE, y=TARGETS), "a SimpleNamespace"),
    ],
    ids=["tensor", "three", "one", "object"],
)
def test_of_anything_else_predict_makes_the_outputs(batch, described: str) -> None:
    with pytest.raises(TypeError, match=f"a batch is {described}, neither a pair"):
        made().outputs(Called(), batch)
    outputs, targets = made(predict=lambda model, given: model(given)).outputs(Called(), batch)
    assert outputs == ((batch,), {})
    assert targets is targets_of(batch) is batch


def test_predict_comes_before_all_else_and_keeps_a_pairs_targets() -> None:
    task = made(predict=lambda model, batch: model(batch[0], scale=3))
    outputs, targets = task.outputs(Called(), (ONE, TARGETS))
    assert outputs == ((ONE,), {"scale": 3})
    assert targets is TARGETS


def test_the_loss_is_that_of_outputs_and_targets() -> None:
    torch.manual_seed(0)
    model, inputs, targets = make_model(), torch.randn(5, 2), torch.randn(5, 3)
    found = made().batch_loss(model, (inputs, targets))
    expected = (inputs @ model.weight.T + model.bias - targets).square().mean()
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


class WithLoss(nn.Module):
    """Computes its loss itself, as Hugging Face's models do."""

    def forward(self, x: Tensor, labels: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=x, loss=F.cross_entropy(x, labels))


def test_a_model_may_compute_its_loss_itself() -> None:
    batch = {"x": torch.randn(4, 5), "labels": TARGETS}
    found = made(loss=None).batch_loss(WithLoss(), batch)
    assert found.item() == pytest.approx(F.cross_entropy(batch["x"], TARGETS).item())
    for outputs, described in ((ONE, "a Tensor"), ((ONE, TWO), "a tuple of 2")):
        with pytest.raises(TypeError, match=f"outputs are {described} without a loss"):
            made(loss=None).loss_of(outputs, TARGETS)


def test_a_step_computes_the_loss_in_its_place() -> None:
    def step(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        first, second, third = batch
        return model(first - second).square().sum() * third

    model = make_model()
    batch = torch.ones(4, 2), torch.zeros(4, 2), torch.tensor(3.0)
    task = made(loss=None, step=step)
    expected = 3 * (model.weight.sum(1) + model.bias).square().sum() * 4
    assert task.batch_loss(model, batch).item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_loaded_task_has_its_data() -> None:
    task = made()
    loaded = task.load()
    assert loaded.task is task
    sizes = [len(part) for part in (loaded.data.train, loaded.data.validation, loaded.data.test)]
    assert sizes == [6, 2, 2]
    given = load()
    assert made(**NO_PARTS, data=lambda: given).load().data is given
