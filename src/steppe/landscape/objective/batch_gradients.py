"""The gradients of single batches, whose spread is the noise of training."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from steppe.landscape.objective.differentiate import derivatives
from steppe.landscape.objective.objective import Objective


class BatchGradient(NamedTuple):
    """A batch's mean gradient, its weight in the mean, and its number of samples."""

    gradient: tuple[Tensor, ...]
    weight: float
    samples: int


def check_has_noise(objective: Objective) -> None:
    """Refuse objectives whose batches' gradients are no means over samples that are all here.

    Raises
    ------
    ValueError
        The model is distributed over processes, or the loss is a sum.
    """
    if objective.is_distributed:
        raise ValueError("model is distributed: pass model.module, and the data of one process")
    if objective.is_sum:
        raise ValueError(
            "the loss is a sum over samples, and its noise grows with a batch's size: take a mean, "
            "as reduction='mean' is"
        )


def batch_gradients(objective: Objective) -> Iterator[BatchGradient]:
    """Go through the data in the evaluation mode; batches that weigh nothing are left out."""
    for batch in objective.batches():
        with torch.enable_grad():
            loss, weight = objective.weighted_loss(batch, *objective.outputs(batch))
            if not weight:
                continue
            gradient = derivatives(loss, objective.params)
        yield BatchGradient(gradient, weight, batch.size)
