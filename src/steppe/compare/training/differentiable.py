"""A task's model and loss in the form that :mod:`steppe.landscape` differentiates."""

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from steppe.compare.data.datasets import parts_of
from steppe.compare.data.loading import Part, head
from steppe.compare.metrics.curvature import batch_size_for
from steppe.compare.metrics.scores import Loss
from steppe.compare.tasks.task import LoadedTask, Task, targets_of
from steppe.compare.training.evaluation import evaluated_at_once
from steppe.landscape import Batch, Batches, Objective, Weight, read_batch


class Differentiable(NamedTuple):
    """What the instruments differentiate: their first arguments, and their ``weight``."""

    model: nn.Module
    loss: Loss | None
    batches: Batches
    weight: Weight


class _WholeBatch(nn.Module):
    """Calls the user's ``predict`` or ``step`` on a whole batch; a step returns the loss."""

    def __init__(self, model: nn.Module, task: Task) -> None:
        super().__init__()
        self.model, self._task = model, task

    def forward(self, batch: Any) -> Any:
        if self._task.step is not None:
            return self._task.step(self.model, batch)
        return self._task.outputs(self.model, batch)[0]


def differentiable(
    loaded: LoadedTask, model: nn.Module, device: torch.device, samples: int
) -> Differentiable:
    """Return model, loss and a few training samples, as the instruments of ``landscape`` take them.

    Parameters
    ----------
    loaded : LoadedTask
        The task, with its data.
    model : nn.Module
        The model, not wrapped.
    device : torch.device
        Where it is.
    samples : int
        How many training samples, without augmentation.
    """
    task = loaded.task
    dataset = loaded.data.unaugmented
    size = min(batch_size_for(model), evaluated_at_once(parts_of(dataset)[0], task.batch_size))
    parts = head(dataset, samples, size, task.collate_evaluated)
    # As evaluation weights batches, whatever the loss is divided by.
    weight: Weight = "samples" if task.weight is None else partial(_weight, task)
    if task.step is None and task.predict is None:
        read = [read_batch(position, part.batch, device) for position, part in enumerate(parts)]
        return Differentiable(model, task.loss, read, weight)
    loss = task.loss if task.step is None else _loss_itself
    batches = [_whole(position, part, device) for position, part in enumerate(parts)]
    return Differentiable(_WholeBatch(model, task), loss, batches, weight)


def mean_loss(differentiable: Differentiable) -> float:
    """Return the mean loss, in ``eval()`` mode."""
    model, loss, batches, weight = differentiable
    objective = Objective(model, loss, batches, weight=weight)
    with objective.evaluation_mode():
        return objective.loss().loss


def _weight(task: Task, outputs: Any, targets: Any) -> float:
    return task.weight_of(outputs, targets, 0)


def _whole(position: int, part: Part, device: torch.device) -> Batch:
    from accelerate.utils import send_to_device

    batch = send_to_device(part.batch, device)
    return Batch(position, (batch,), {}, targets_of(batch), part.size)


def _loss_itself(loss: Tensor, targets: Any) -> Tensor:
    return loss
