"""Losses that are means over tokens: evaluation and curvature weight batches by their tokens."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.training_runs import LITTLE_CURVATURE
from steppe._shared.recipes import find_recipe
from steppe.compare import Task
from steppe.compare.training import evaluation
from steppe.compare.training.accelerator import make_accelerator
from steppe.compare.training.differentiable import differentiable, mean_loss
from steppe.compare.training.evaluation import evaluate
from steppe.compare.training.run import Run, RunSettings
from steppe.compare.training.train import train
from steppe.landscape import hessian

PADDING = -100
LENGTHS = torch.tensor([1, 9, 3, 0, 7, 2, 9, 5, 4, 8] * 3)


class Tagger(nn.Module):
    """A linear map of each token of (sequences, tokens, 4) to three classes."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.map(tokens).transpose(1, 2)  # type: ignore[no-any-return]


def tokens_of(outputs: Any, targets: Tensor) -> float:
    return float((targets != PADDING).sum())


def tagged(**changes: Any) -> Task:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(len(LENGTHS), 9, 4, generator=generator)
    targets = torch.randint(3, (len(LENGTHS), 9), generator=generator)
    targets[torch.arange(9) >= LENGTHS[:, None]] = PADDING
    parts: dict[str, Any] = {
        "name": "tags",
        "model": Tagger,
        "train": (inputs, targets),
        "validation": (inputs, targets),
        "test": (inputs, targets),
        "loss": F.cross_entropy,
        "weight": tokens_of,
    }
    return Task(**{**parts, **changes})


def by_token(model: nn.Module, task: Task) -> list[np.ndarray]:
    """Return the losses of each sequence's tokens, one by one in float64."""
    inputs, targets = task.train  # type: ignore[misc, index]
    with torch.no_grad():
        logits = model(inputs).double().transpose(1, 2).numpy()
    shifted = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(
        logits, targets.clamp(min=0).numpy()[..., None], -1
    ).squeeze(-1)
    return [row[:length] for row, length in zip(shifted, LENGTHS.tolist(), strict=True)]


@pytest.mark.parametrize("batch", [500, 7, 1])
def test_the_loss_is_that_of_all_tokens_however_they_are_batched(
    batch: int, monkeypatch: pytest.MonkeyPatch, make_run: Any, context: Any
) -> None:
    monkeypatch.setattr(evaluation, "_BATCH_SIZE", batch)
    accelerator = make_accelerator(make_run(), context)
    torch.manual_seed(1)
    model, task = Tagger(), tagged()
    samples = task.load().data.test
    found = evaluate(model, task, samples, accelerator, sample_length=1, by_sample=True)
    losses = by_token(model, task)
    assert found.loss == pytest.approx(np.concatenate(losses).mean(), rel=1e-6)
    assert np.mean(found.losses) == pytest.approx(found.loss, rel=1e-6)
    # The mean is a ratio of sums: its error by the delta method.
    off = np.array([row.sum() - len(row) * found.loss for row in losses]) / LENGTHS.numpy().mean()
    assert np.std(found.losses) == pytest.approx(np.std(off), rel=1e-5)


def test_curvature_is_that_of_the_mean_over_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steppe.compare.training.differentiable.batch_size_for", lambda model: 4)
    torch.manual_seed(1)
    task, model = tagged(), Tagger().double()
    inputs, targets = (each for each in task.train)  # type: ignore[union-attr]
    loaded = tagged(
        train=(inputs.double(), targets), validation=0.2, test=0.2,
        plain=(inputs.double(), targets),
    ).load()  # fmt: skip
    whole = differentiable(loaded, model, torch.device("cpu"), 18)
    few = loaded.data.unaugmented
    rows, labels = (torch.stack(each) for each in zip(*(few[i] for i in range(18)), strict=True))
    assert mean_loss(whole) == pytest.approx(F.cross_entropy(model(rows), labels).item())

    def loss(vector: Tensor) -> Tensor:
        weight, bias = vector[:12].view(3, 4), vector[12:]
        return F.cross_entropy((rows @ weight.T + bias).transpose(1, 2), labels)

    vector = nn.utils.parameters_to_vector(model.parameters()).detach()
    dense = torch.autograd.functional.hessian(loss, vector)
    found = hessian(whole.model, whole.loss, whole.batches, weight=whole.weight)
    torch.testing.assert_close(found.matmat(torch.eye(15, dtype=torch.float64)), dense)


def test_weight_must_be_a_function() -> None:
    with pytest.raises(TypeError, match="weight must be a function, got float"):
        tagged(weight=2.0)


@pytest.mark.parametrize("parts", [2, 5, 30])
def test_parts_of_a_batch_weigh_as_their_tokens(parts: int, context: Any) -> None:
    """A part of padding alone was NaN, and others were weighed by samples."""
    task = tagged(curvature=LITTLE_CURVATURE).load()
    ends = []
    for count in (1, parts):
        setup = {"epochs": 2, "steps_per_epoch": 1, "batch_size": 30, "schedule": "constant"}
        settings = RunSettings("tags", "", None, "own", accumulate=count, **setup)
        run = Run(settings, find_recipe("sgd"), {"lr": 0.5, "weight_decay": 0.0}, seed=3)
        out = replace(context, out=context.out / str(count))
        ends.append(train(run, task, out))
    one, several = ends
    assert several.final.test_loss == pytest.approx(one.final.test_loss, rel=1e-6)
    assert several.curve[-1].train_loss == pytest.approx(one.curve[-1].train_loss, rel=1e-6)
