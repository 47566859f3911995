"""A task's model and loss in the form that :mod:`steppe.landscape` differentiates."""

from typing import Any

import torch
from torch import Tensor, nn

from steppe.compare.data.loading import Part, head
from steppe.compare.metrics.curvature import batch_size_for
from steppe.compare.metrics.scores import Loss
from steppe.compare.tasks.task import LoadedTask, Task, targets_of
from steppe.landscape import Batch, Batches, Objective, read_batch


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
) -> tuple[nn.Module, Loss | None, Batches]:
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
    parts = head(loaded.data.unaugmented, samples, batch_size_for(model), task.collate_fn)
    if task.step is None and task.predict is None:
        return model, task.loss, [read_batch(n, part.batch, device) for n, part in enumerate(parts)]
    loss = task.loss if task.step is None else _loss_itself
    batches = [_whole(position, part, device) for position, part in enumerate(parts)]
    return _WholeBatch(model, task), loss, batches


def mean_loss(model: nn.Module, loss: Loss | None, batches: Batches) -> float:
    """Return the mean loss over samples, in ``eval()`` mode."""
    objective = Objective(model, loss, batches, weight="samples")
    with objective.evaluation_mode():
        return objective.loss().loss


def _whole(position: int, part: Part, device: torch.device) -> Batch:
    from accelerate.utils import send_to_device

    batch = send_to_device(part.batch, device)
    return Batch(position, (batch,), {}, targets_of(batch), part.size)


def _loss_itself(loss: Tensor, targets: Any) -> Tensor:
    return loss
