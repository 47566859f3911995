"""Batches of a data set for a model, and the model's loss and score on a data set.

Training reads its batches here, and evaluates after each epoch and at its end.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from steppe.compare.data.datasets import Samples
from steppe.compare.data.loading import loader
from steppe.compare.metrics.scores import losses_by_sample
from steppe.compare.models.language_models import Recurrent, carried_state, columns
from steppe.compare.tasks import Task

if TYPE_CHECKING:
    from accelerate import Accelerator

_BATCH_SIZE = 500


def batches_for(
    model: nn.Module,
    dataset: "Dataset[Any]",
    batch_size: int,
    *,
    order: torch.Generator | None = None,
    workers: int = 0,
) -> "DataLoader[Any]":
    """Make the batches that a model reads.

    A recurrent model reads a text in columns that go on from batch to batch, in the same order
    each time; see :func:`~steppe.compare.models.language_models.columns`.

    Parameters
    ----------
    model : nn.Module
        The model, not wrapped.
    dataset : Dataset
        The samples.
    batch_size : int
        Samples of a batch.
    order : torch.Generator, optional
        Shuffles the samples. Default: as they are.
    workers : int, default 0
        Processes that prepare batches.
    """
    if isinstance(model, Recurrent):
        chosen = columns(len(dataset), batch_size)  # type: ignore[arg-type]
        return loader(dataset, batch_size, workers=workers, batches=chosen)
    return loader(dataset, batch_size, order=order, workers=workers)


@dataclass(frozen=True)
class Evaluation:
    """A model on a data set.

    Attributes
    ----------
    loss, score : float
        Over all samples.
    tasks : tuple of float
        The score of each task of a stream; empty without one.
    hits, losses : tuple of float, default empty
        Of each sample, if asked for: whether it was predicted right, and its loss. The order is
        that of the data set, or the one in which a recurrent model reads it.
    """

    loss: float
    score: float
    tasks: tuple[float, ...]
    hits: tuple[float, ...] = ()
    losses: tuple[float, ...] = ()


@torch.no_grad()
def evaluate(
    model: nn.Module,
    task: Task,
    dataset: Samples,
    accelerator: "Accelerator",
    *,
    sample_length: int,
    workers: int = 0,
    by_sample: bool = False,
) -> Evaluation:
    """Return a model's mean loss, score and scores by task over all samples, in ``eval()`` mode.

    Parameters
    ----------
    model : nn.Module
        The model, not wrapped for distributed training: wrapped models wait for each other in
        every batch, and processes may have different numbers of batches here.
    task : Task
        Gives loss and score.
    dataset : Samples
        What it is evaluated on; each process of a launch takes its share.
    accelerator : accelerate.Accelerator
        The processes and their device.
    sample_length : int
        Tokens of a sample; 1 where samples are no text.
    workers : int, default 0
        Processes that prepare batches.
    by_sample : bool, default False
        Whether each sample's results are returned too.
    """
    process, processes = accelerator.process_index, accelerator.num_processes
    share = Subset(dataset, range(process, len(dataset), processes))
    loss = torch.zeros((), dtype=torch.float64, device=accelerator.device)
    sums: Any = 0
    hits: list[Tensor] = []
    losses: list[Tensor] = []
    model.eval()
    with carried_state(model) as advance:
        for inputs, targets in batches_for(
            model, share, max(1, _BATCH_SIZE // sample_length), workers=workers
        ):
            outputs = model(inputs.to(loss.device))
            wanted = targets.to(loss.device)
            loss += task.loss(outputs, wanted) * len(targets)
            sums = sums + task.score.sums(outputs, wanted)
            if by_sample:
                losses.append(losses_by_sample(task.loss, outputs, wanted).double())
                if task.score.hits:
                    hits.append(task.score.hits(outputs, wanted).double())
            advance()
    model.train()
    mean = float(sum_over_processes(loss, accelerator)) / len(dataset)
    sums = sum_over_processes(sums, accelerator)
    return Evaluation(
        mean,
        task.score.total(sums, mean),
        task.score.parts(sums),
        _joined(hits, accelerator),
        _joined(losses, accelerator),
    )


def _joined(parts: list[Tensor], accelerator: "Accelerator") -> tuple[float, ...]:
    """Return all samples' numbers: process after process has every n-th sample."""
    own = torch.cat(parts).tolist() if parts else []
    if accelerator.num_processes == 1:
        return tuple(own)
    from accelerate.utils import gather_object

    shares = gather_object([own])
    return tuple(
        share[row] for row in range(len(shares[0])) for share in shares if row < len(share)
    )


def sum_over_processes(value: Tensor | float, accelerator: "Accelerator") -> Any:
    """Sum a value over the processes of a launch."""
    if accelerator.num_processes == 1:
        return value
    tensor = torch.as_tensor(value, device=accelerator.device)
    return accelerator.reduce(tensor, reduction="sum")
