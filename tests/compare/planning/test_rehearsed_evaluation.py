"""What cannot be evaluated is said before any trial, with the samples that it is about."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import default_collate

from steppe.compare.metrics.scores import ACCURACY
from steppe.compare.planning.rehearsal import new_model, rehearse
from steppe.compare.tasks.task import Task
from steppe.compare.tasks.trace import TaskError
from steppe.compare.training.run import RunContext, RunSettings

SETTINGS = RunSettings("own", "", None, "", epochs=2, steps_per_epoch=3, batch_size=8)
X = torch.randn(900, 4, generator=torch.Generator().manual_seed(0))
Y = (X.sum(1) > 0).long()
Rehearsed = Callable[..., None]


@pytest.fixture
def rehearsed(context: RunContext) -> Rehearsed:
    def do(**changes: Any) -> None:
        made = Task(
            **{
                "name": "own",
                "model": lambda: nn.Linear(4, 2),
                "train": (X[:300], Y[:300]),
                "validation": (X[300:600], Y[300:600]),
                "test": (X[600:], Y[600:]),
                "loss": F.cross_entropy,
                "metrics": {"accuracy": ACCURACY},
                **changes,
            }
        )
        rehearse(made.load(), new_model(made), SETTINGS, context)

    return do


def with_nan(values: Tensor, row: int) -> Tensor:
    changed = values.clone()
    changed[row] = torch.nan
    return changed


@pytest.mark.parametrize("row", range(140, 160))
@pytest.mark.parametrize("name", ["train", "validation", "test"])
def test_a_sample_without_a_loss_is_named(rehearsed: Rehearsed, name: str, row: int) -> None:
    """Wherever it is: a batch that is looked at by chance would miss most."""
    with pytest.raises(TaskError, match=rf"loss|metric .* of {name}.*") as caught:
        rehearsed(**{name: (with_nan(X[:300], row), Y[:300])})
    assert f"of {name} is nan" in str(caught.value) or "of the first batch is nan" in str(caught)


def test_the_samples_are_named_and_counted(rehearsed: Rehearsed) -> None:
    inputs = X[:300].clone()
    inputs[[100, 120, 140, 160, 180]] = torch.nan
    with pytest.raises(
        TaskError, match=r"of train.*before any step, of train\[100\], train\[120\], train\[1"
    ):
        rehearsed(train=(inputs, Y[:300]))
    with pytest.raises(TaskError, match="and 2 more: a sample or its target holds NaN"):
        rehearsed(train=(inputs, Y[:300]))


def test_a_metric_without_a_value_for_a_sample_is_refused(rehearsed: Rehearsed) -> None:
    def odd(outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.where((outputs.sum(1) * 0 + targets * 0 == 0) & is_rare(targets), torch.nan, 1)

    def is_rare(targets: Tensor) -> Tensor:
        return (torch.arange(len(targets)) == 250) & (len(targets) > 250)

    with pytest.raises(TaskError, match=r"metric 'odd' of validation is nan, of validation\[250\]"):
        rehearsed(metrics={"odd": odd})
    with pytest.raises(TaskError, match="let it return a number for every sample"):
        rehearsed(metrics={"odd": odd})


def mixed(samples: list[Any]) -> Any:
    inputs, targets = default_collate(samples)
    other = torch.randperm(len(inputs))
    share = torch.rand(())
    labels = F.one_hot(targets, 2).float()
    return share * inputs + (1 - share) * inputs[other], share * labels + (1 - share) * labels[
        other
    ]


def hits(outputs: Tensor, targets: Tensor) -> Tensor:
    labels = targets.argmax(1) if targets.ndim > 1 else targets
    return outputs.argmax(1) == labels


def test_batches_that_are_mixed_at_random_are_not_evaluated(rehearsed: Rehearsed) -> None:
    with pytest.raises(
        TaskError, match="collate_fn makes another batch of the same samples of val"
    ):
        rehearsed(collate_fn=mixed, metrics={"hits": hits})
    rehearsed(collate_fn=mixed, evaluation_collate_fn=default_collate, metrics={"hits": hits})
    with pytest.raises(TaskError, match="evaluation_collate_fn makes another batch"):
        rehearsed(evaluation_collate_fn=mixed, metrics={"hits": hits})


class Batch:
    """A batch of a class of one's own, as graphs have."""

    def __init__(self, samples: list[Any]) -> None:
        self.inputs, self.targets = default_collate(samples)


def test_batches_that_cannot_be_told_apart_are_evaluated(rehearsed: Rehearsed) -> None:
    rehearsed(
        collate_fn=Batch,
        loss=lambda outputs, batch: F.cross_entropy(outputs, batch.targets),
        predict=lambda model, batch: model(batch.inputs),
        metrics={"hits": lambda outputs, batch: outputs.argmax(1) == batch.targets},
    )


def forces(model: nn.Module, batch: Any) -> Tensor:
    """Match the gradient of an energy, as interatomic potentials do."""
    x = batch[0].detach().requires_grad_()
    energy = model(x)[:, 0].tanh().sum()
    (force,) = torch.autograd.grad(energy, x, create_graph=True)
    return (force - 1).square().mean()


class Forces(nn.Module):
    """A model whose outputs are gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        (force,) = torch.autograd.grad(self.energy(x).tanh().sum(), x, create_graph=True)
        return force


def test_losses_of_gradients_are_evaluated(rehearsed: Rehearsed) -> None:
    rehearsed(loss=None, metrics={}, step=forces)
    rehearsed(
        model=Forces,
        train=(X[:300], X[:300]),
        validation=(X[300:600], X[300:600]),
        test=(X[600:], X[600:]),
        loss=F.mse_loss,
        metrics={"error": lambda x, y: (x - y).abs().mean(1)},
    )
