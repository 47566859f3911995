"""Results sample by sample, against plain loops over samples."""

import copy
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.torchvision_shim import torchvision  # noqa: F401
from helpers.training_runs import train_on
from steppe.compare.data.datasets import Data, Samples, Stream, TensorSamples
from steppe.compare.metrics.scores import ACCURACY, Metric
from steppe.compare.records.packed_numbers import MOST_LOSSES, unpack
from steppe.compare.tasks.makers import TaskMaker
from steppe.compare.tasks.task import Task
from steppe.compare.tasks.trace import TaskError
from steppe.compare.training import checkpoint
from steppe.compare.training.accelerator import make_accelerator
from steppe.compare.training.evaluation import evaluate, evaluated_at_once
from steppe.compare.training.run import Run, RunContext


def by_loop(model: nn.Module, samples: Samples) -> tuple[list[bool], list[float]]:
    """Predict one sample after the other, in float64."""
    model = model.double().eval()
    hits, losses = [], []
    for row in range(len(samples)):
        inputs, target = samples[row]
        with torch.no_grad():
            (output,) = model(inputs.double()[None]).tolist()
        exponentials = np.exp(output)
        losses.append(-float(np.log(exponentials[int(target)] / exponentials.sum())))
        hits.append(output.index(max(output)) == int(target))
    return hits, losses


@pytest.fixture
def evaluated(make_run: Callable[..., Run], context: RunContext) -> Callable[..., object]:
    """Evaluate a model on samples, in this process."""
    accelerator = make_accelerator(make_run(), context)

    def make(model: nn.Module, task: Task, samples: Samples, **options: bool) -> object:
        return evaluate(model, task, samples, accelerator, sample_length=1, **options)

    return make


def test_each_sample_has_its_loss_and_whether_it_is_right(
    evaluated, toy_task: TaskMaker, toy_data: Data
) -> None:
    torch.manual_seed(2)
    model = toy_task.make("noisy")
    found = evaluated(model, toy_task(), toy_data.train, by_sample=True)
    assert model.training
    hits, losses = by_loop(model, toy_data.train)
    assert found.scores == tuple(map(float, hits))
    assert 0 < sum(hits) < len(hits)
    assert found.losses == pytest.approx(losses, rel=1e-5)
    assert np.mean(found.losses) == pytest.approx(found.loss, rel=1e-6)
    assert np.mean(found.scores) == pytest.approx(found.score)


def test_samples_come_in_the_order_of_the_data_set_over_many_batches(
    evaluated, toy_task: TaskMaker
) -> None:
    """1 203 samples are three batches."""
    inputs = torch.randn(1_203, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    samples = TensorSamples(inputs, (inputs[:, 0, 0, 0] > 0).long())
    model = toy_task.make("linear")
    found = evaluated(model, toy_task(), samples, by_sample=True)
    hits, losses = by_loop(model, samples)
    assert list(found.scores) == hits
    assert found.losses == pytest.approx(losses, rel=1e-4)
    # Of samples and not of batches, and not rounded: one sample more is always the same difference.
    assert found.score == sum(hits) / 1_203
    assert found.loss == pytest.approx(np.mean(losses), rel=1e-6)


def test_without_being_asked_for_there_are_none(
    evaluated, toy_task: TaskMaker, toy_data: Data
) -> None:
    model = toy_task.make("linear")
    plain = evaluated(model, toy_task(), toy_data.test)
    assert (plain.scores, plain.losses) == ((), ())
    asked = evaluated(model, toy_task(), toy_data.test, by_sample=True)
    assert (plain.loss, plain.score) == (asked.loss, asked.score)


def test_a_metric_of_torchmetrics_has_a_score_and_none_by_sample(
    evaluated, toy_task: TaskMaker, toy_data: Data
) -> None:
    from torchmetrics.classification import MulticlassAccuracy

    metric = Metric(MulticlassAccuracy(2, average="micro"))
    task = replace(toy_task, metrics=(("accuracy", metric),))()
    model = toy_task.make("linear")
    for samples in (toy_data.train, toy_data.test):  # what was scored before does not count
        found = evaluated(model, task, samples, by_sample=True)
        assert found.scores == ()
        hits, losses = by_loop(copy.deepcopy(model), samples)
        assert found.score == pytest.approx(np.mean(hits))
        assert found.losses == pytest.approx(losses, rel=1e-4)


def test_all_metrics_are_scored_and_the_first_is_the_score(
    evaluated, toy_task: TaskMaker, toy_data: Data
) -> None:
    def surprise(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, reduction="none").square()

    metrics = (("root", Metric(surprise, False, of_mean="root")), ("accuracy", ACCURACY))
    model = toy_task.make("linear")
    found = evaluated(model, replace(toy_task, metrics=metrics)(), toy_data.test, by_sample=True)
    hits, losses = by_loop(model, toy_data.test)
    assert found.score == pytest.approx(np.sqrt(np.mean(np.square(losses))), rel=1e-5)
    assert found.scores == pytest.approx(np.square(losses), rel=1e-4)
    assert found.others == pytest.approx({"accuracy": np.mean(hits)})


def test_without_a_metric_the_loss_is_the_score(
    evaluated, toy_task: TaskMaker, toy_data: Data
) -> None:
    task = replace(toy_task, metrics=())()
    model = toy_task.make("linear")
    found = evaluated(model, task, toy_data.test, by_sample=True)
    _, losses = by_loop(model, toy_data.test)
    assert found.score == found.loss == pytest.approx(np.mean(losses), rel=1e-5)
    assert found.scores == found.losses == pytest.approx(losses, rel=1e-4)
    assert (task.score.name, task.score.higher_is_better) == ("mean loss", False)


def test_each_part_of_a_stream_is_evaluated_by_itself(
    evaluated, toy_task: TaskMaker, toy_data: Data
) -> None:
    """The score is the mean of the parts' scores, the loss that of all samples."""
    parts = [toy_data.train.take(torch.arange(5)), toy_data.test]
    model = toy_task.make("linear")
    found = evaluated(model, toy_task(), Stream(parts), by_sample=True)
    first, second = (by_loop(copy.deepcopy(model), part) for part in parts)
    assert found.tasks == pytest.approx([np.mean(first[0]), np.mean(second[0])])
    assert found.score == pytest.approx(np.mean(found.tasks))
    assert found.loss == pytest.approx(np.mean(first[1] + second[1]), rel=1e-5)
    assert list(found.scores) == first[0] + second[0]
    assert found.losses == pytest.approx(first[1] + second[1], rel=1e-4)


@pytest.mark.parametrize("shape", [(), (4,), (9, 2)])
def test_a_metric_that_gives_no_number_for_each_sample_is_refused(
    evaluated, toy_task: TaskMaker, toy_data: Data, shape: tuple[int, ...]
) -> None:
    metric = Metric(lambda outputs, targets: torch.zeros(shape))
    task = replace(toy_task, metrics=(("zero", metric),))()
    expected = re.escape(f"a tensor of shape (9,), got shape {shape}: average over all")
    with pytest.raises(TaskError, match=expected):
        evaluated(toy_task.make("linear"), task, toy_data.test)


@pytest.mark.parametrize("model", ["linear", "noisy"])
def test_what_a_run_keeps_is_what_its_saved_model_does(
    make_run: Callable[..., Run],
    toy_task: TaskMaker,
    toy_data: Data,
    context: RunContext,
    model: str,
) -> None:
    run = make_run("adamw+ema", model=model, epochs=3, settings={"lr": 0.02})
    outcome = train_on(run, toy_data, context)
    network = toy_task.make(model)
    path = checkpoint.checkpoint_path(context.out, run)
    network.load_state_dict(checkpoint.load(path, torch.device("cpu"))["model"])
    kept = outcome.samples
    for scores, losses, samples, mean_loss, mean_score in (
        (kept.validation_scores, kept.validation_losses, toy_data.validation,
         outcome.final.validation_loss, outcome.final.validation_score),
        (kept.test_scores, kept.test_losses, toy_data.test,
         outcome.final.test_loss, outcome.final.test_score),
    ):  # fmt: skip
        right, expected = by_loop(network, samples)
        assert unpack(scores).tolist() == right
        # Two bytes have three digits.
        assert unpack(losses) == pytest.approx(expected, rel=1e-3, abs=1e-4)
        assert unpack(scores).mean() == pytest.approx(mean_score)
        assert unpack(losses).mean() == pytest.approx(mean_loss, rel=1e-3)


def test_a_run_that_diverged_has_none(
    make_run: Callable[..., Run], toy_data: Data, context: RunContext
) -> None:
    outcome = train_on(make_run("sgd", settings={"lr": 1e38}, epochs=5), toy_data, context)
    assert outcome.diverged
    assert set(vars(outcome.samples).values()) == {""}


def test_losses_of_many_samples_are_kept_as_means_of_stretches(
    make_run: Callable[..., Run], toy_task: TaskMaker, toy_data: Data, context: RunContext
) -> None:
    inputs = torch.randn(1_203, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    samples = TensorSamples(inputs, (inputs[:, 0, 0, 0] > 0).long())
    run = make_run()
    outcome = train_on(run, replace(toy_data, test=samples), context)
    network = toy_task.make("linear")
    path = checkpoint.checkpoint_path(context.out, run)
    network.load_state_dict(checkpoint.load(path, torch.device("cpu"))["model"])
    _, losses = by_loop(network, samples)
    # As many stretches as there can be of three samples each.
    expected = [np.mean(part) for part in np.split(np.array(losses), 401)]
    assert len(expected) <= MOST_LOSSES == 500
    assert unpack(outcome.samples.test_losses) == pytest.approx(expected, rel=1e-3)
    assert len(unpack(outcome.samples.test_scores)) == 1_203


def test_a_loss_that_looks_at_values_is_taken_sample_by_sample(
    evaluated, toy_task: TaskMaker, toy_data: Data
) -> None:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy, twice that of targets of 1, for which it branches, as vmap cannot."""
        found = F.cross_entropy(outputs, targets, reduction="none")
        if bool((targets == 1).any()):
            found = found * (1 + targets)
        return found.mean()

    model = toy_task.make("linear")
    found = evaluated(model, replace(toy_task, loss=loss)(), toy_data.test, by_sample=True)
    _, losses = by_loop(model, toy_data.test)
    factors = 1 + toy_data.test.targets.numpy()
    assert found.losses == pytest.approx(factors * losses, rel=1e-5)


def test_a_loss_that_is_no_mean_over_samples_has_none_by_sample(
    evaluated, toy_task: TaskMaker, toy_data: Data
) -> None:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        """Weight the mean by class."""
        return F.cross_entropy(outputs, targets, torch.tensor([1.0, 5.0]))

    model = toy_task.make("linear")
    found = evaluated(model, replace(toy_task, loss=loss)(), toy_data.test, by_sample=True)
    _, losses = by_loop(model, toy_data.test)
    weights = 1 + 4 * toy_data.test.targets.numpy()
    assert found.loss == pytest.approx(np.average(losses, weights=weights), rel=1e-5)
    assert found.losses == ()
    assert len(found.scores) == len(losses)


@pytest.mark.parametrize(
    ("sample", "count"),
    [
        ((torch.zeros(64), 3), 500),
        ((torch.zeros(1, 28, 28), torch.tensor(3)), 500),
        ((torch.zeros(3, 32, 32), 3), 170),
        ((np.zeros((3, 224, 224), dtype=np.float32), 3), 8),
        ({"input_ids": torch.zeros(512, dtype=torch.long), "labels": torch.tensor(1)}, 8),
        ({"input_ids": torch.zeros(16, dtype=torch.long), "name": "x"}, 128),
        (([object()], 3), 8),
        ((1.0, 2), 500),
    ],
    ids=["digits", "MNIST", "CIFAR", "ImageNet", "text", "short text", "objects", "numbers"],
)
def test_large_samples_are_evaluated_in_batches_as_in_training(sample: Any, count: int) -> None:
    """A batch of 500 segmented images had no memory, where training in batches of 4 had."""
    assert evaluated_at_once([sample], 8) == count
    assert evaluated_at_once([sample], 600) == 600
