"""Results sample by sample, against plain loops over samples."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steppe.compare.data.datasets import Data, Samples, TensorSamples
from steppe.compare.records.packed_numbers import MOST_LOSSES, unpack
from steppe.compare.tasks import Task
from steppe.compare.training import checkpoint
from steppe.compare.training.accelerator import make_accelerator
from steppe.compare.training.evaluation import evaluate
from steppe.compare.training.run import Run, RunContext
from steppe.compare.training.train import train


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
    evaluated, toy_task: Task, toy_data: Data
) -> None:
    torch.manual_seed(2)
    model = toy_task.make("noisy")
    found = evaluated(model, toy_task, toy_data.train, by_sample=True)
    assert model.training
    hits, losses = by_loop(model, toy_data.train)
    assert found.hits == tuple(map(float, hits))
    assert 0 < sum(hits) < len(hits)
    assert found.losses == pytest.approx(losses, rel=1e-5)
    assert np.mean(found.losses) == pytest.approx(found.loss, rel=1e-6)
    assert np.mean(found.hits) == pytest.approx(found.score)


def test_samples_come_in_the_order_of_the_data_set_over_many_batches(
    evaluated, toy_task: Task
) -> None:
    """1 203 samples are three batches."""
    inputs = torch.randn(1_203, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    samples = TensorSamples(inputs, (inputs[:, 0, 0, 0] > 0).long())
    model = toy_task.make("linear")
    found = evaluated(model, toy_task, samples, by_sample=True)
    hits, losses = by_loop(model, samples)
    assert list(found.hits) == hits
    assert found.losses == pytest.approx(losses, rel=1e-4)


def test_without_being_asked_for_there_are_none(evaluated, toy_task: Task, toy_data: Data) -> None:
    model = toy_task.make("linear")
    plain = evaluated(model, toy_task, toy_data.test)
    assert (plain.hits, plain.losses) == ((), ())
    asked = evaluated(model, toy_task, toy_data.test, by_sample=True)
    assert (plain.loss, plain.score) == (asked.loss, asked.score)


def test_a_score_that_is_no_share_of_samples_has_no_hits(
    evaluated, toy_task: Task, toy_data: Data
) -> None:
    task = replace(toy_task, score=replace(toy_task.score, hits=None))
    found = evaluated(task.make("linear"), task, toy_data.test, by_sample=True)
    assert found.hits == ()
    assert len(found.losses) == len(toy_data.test)


@pytest.mark.parametrize("model", ["linear", "noisy"])
def test_what_a_run_keeps_is_what_its_saved_model_does(
    make_run: Callable[..., Run], toy_task: Task, toy_data: Data, context: RunContext, model: str
) -> None:
    run = make_run("adamw+ema", model=model, epochs=3, settings={"lr": 0.02})
    outcome = train(run, toy_data, context)
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
    outcome = train(make_run("sgd", settings={"lr": 1e38}, epochs=5), toy_data, context)
    assert outcome.diverged
    assert set(vars(outcome.samples).values()) == {""}


def test_losses_of_many_samples_are_kept_as_means_of_stretches(
    make_run: Callable[..., Run], toy_task: Task, toy_data: Data, context: RunContext
) -> None:
    inputs = torch.randn(1_203, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    samples = TensorSamples(inputs, (inputs[:, 0, 0, 0] > 0).long())
    run = make_run()
    outcome = train(run, replace(toy_data, test=samples), context)
    network = toy_task.make("linear")
    path = checkpoint.checkpoint_path(context.out, run)
    network.load_state_dict(checkpoint.load(path, torch.device("cpu"))["model"])
    _, losses = by_loop(network, samples)
    # 203 stretches of three samples and 297 of two.
    ends = np.cumsum([3] * 203 + [2] * 297)
    expected = [np.mean(part) for part in np.split(np.array(losses), ends[:-1])]
    assert len(expected) == MOST_LOSSES == 500
    assert unpack(outcome.samples.test_losses) == pytest.approx(expected, rel=1e-3)
    assert len(unpack(outcome.samples.test_scores)) == 1_203


def test_a_loss_that_looks_at_values_is_taken_sample_by_sample(
    evaluated, toy_task: Task, toy_data: Data
) -> None:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy, twice that where all targets are 1, which vmap cannot see."""
        twice = bool((targets == 1).all())
        return F.cross_entropy(outputs, targets) * (2 if twice else 1)

    model = toy_task.make("linear")
    found = evaluated(model, replace(toy_task, loss=loss), toy_data.test, by_sample=True)
    _, losses = by_loop(model, toy_data.test)
    factors = 1 + toy_data.test.targets.numpy()
    assert found.losses == pytest.approx(factors * losses, rel=1e-5)
