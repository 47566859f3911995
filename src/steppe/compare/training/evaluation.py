"""Batches of a data set for a model, and the model's loss and score on a data set.

Training reads its batches here, and evaluates after each epoch and at its end.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from steppe.compare.data.datasets import Stream, parts_of, size_of
from steppe.compare.data.loading import Part, loader
from steppe.compare.metrics.scores import Metric, losses_by_sample
from steppe.compare.models.language_models import Recurrent, carried_state, columns
from steppe.compare.tasks.task import Task
from steppe.compare.tasks.trace import TaskError

if TYPE_CHECKING:
    from accelerate import Accelerator

_BATCH_SIZE = 500


def batches_for(
    model: nn.Module,
    dataset: "Dataset[Any]",
    batch_size: int,
    **how: Any,
) -> "DataLoader[list[Part]]":
    """Make the batches that a model reads, by :func:`~steppe.compare.data.loading.loader`.

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
    **how
        What else the loader takes.
    """
    if isinstance(model, Recurrent):
        chosen = columns(size_of(dataset), batch_size)
        return loader(dataset, batch_size, **{**how, "order": None, "batches": chosen})
    return loader(dataset, batch_size, **how)


@dataclass(frozen=True)
class Evaluation:
    """A model on a data set.

    Attributes
    ----------
    loss, score : float
        Over all samples; of a stream, the score is the mean of its tasks' scores.
    tasks : tuple of float
        The score of each task of a stream; empty without one.
    others : mapping
        The other metrics' scores, by name.
    scores, losses : tuple of float, default empty
        Of each sample, if asked for: what it adds to the score, and its loss; empty where the
        metric or the loss is no mean over samples. The order is that of the data set, or the one
        in which a recurrent model reads it.
    """

    loss: float
    score: float
    tasks: tuple[float, ...]
    others: Mapping[str, float]
    scores: tuple[float, ...] = ()
    losses: tuple[float, ...] = ()


@torch.no_grad()
def evaluate(
    model: nn.Module,
    task: Task,
    dataset: "Dataset[Any]",
    accelerator: "Accelerator",
    *,
    sample_length: int,
    workers: int = 0,
    by_sample: bool = False,
) -> Evaluation:
    """Return a model's mean loss, scores and scores by task over all samples, in ``eval()`` mode.

    Parameters
    ----------
    model : nn.Module
        The model, not wrapped for distributed training: wrapped models wait for each other in
        every batch, and processes may have different numbers of batches here.
    task : Task
        Gives loss and metrics.
    dataset : Dataset
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
    batch_size = max(1, _BATCH_SIZE // sample_length)
    model.eval()
    found = [
        _evaluate_part(model, task, part, accelerator, batch_size, workers, by_sample)
        for part in parts_of(dataset)
    ]
    model.train()
    scores = [each.score for each in found]
    sizes = [size_of(part) for part in parts_of(dataset)]
    loss = sum(each.loss * size for each, size in zip(found, sizes, strict=True)) / sum(sizes)
    return Evaluation(
        loss,
        fmean(scores),
        tuple(scores) if isinstance(dataset, Stream) else (),
        {name: fmean(each.others[name] for each in found) for name in found[0].others},
        tuple(x for each in found for x in each.scores) if all(e.scores for e in found) else (),
        tuple(x for each in found for x in each.losses) if all(e.losses for e in found) else (),
    )


def _evaluate_part(
    model: nn.Module,
    task: Task,
    dataset: "Dataset[Any]",
    accelerator: "Accelerator",
    batch_size: int,
    workers: int,
    by_sample: bool,
) -> Evaluation:
    from accelerate.utils import send_to_device

    process, processes = accelerator.process_index, accelerator.num_processes
    share = Subset(dataset, range(process, size_of(dataset), processes))
    loss = torch.zeros((), dtype=torch.float64, device=accelerator.device)
    results = {name: _Scores(name, metric, accelerator) for name, metric in task.metrics.items()}
    losses: list[Tensor] = []
    known = by_sample and task.step is None
    batches = batches_for(model, share, batch_size, workers=workers, collate=task.collate_fn)
    with carried_state(model) as advance:
        for (part,) in batches:
            batch, size = send_to_device(part.batch, accelerator.device), part.size
            # A step of the user's own may score no outputs.
            scored = task.step is None or bool(task.metrics)
            outputs, targets = task.outputs(model, batch) if scored else (None, None)
            mean = task.step(model, batch) if task.step else task.loss_of(outputs, targets)
            loss += mean * size
            for result in results.values():
                result.add(outputs, targets, size)
            if known:
                loss_of = task.loss or task.loss_of
                found = losses_by_sample(loss_of, outputs, targets, size, float(mean))
                known = found is not None
                losses += [] if found is None else [found.double()]
            advance()
    mean_loss = float(sum_over_processes(loss, accelerator)) / size_of(dataset)
    scores = {name: result.score() for name, result in results.items()}
    of_each = _joined(losses if known else None, accelerator) if by_sample else ()
    if not results:
        return Evaluation(mean_loss, mean_loss, (), {}, of_each, of_each)
    first, *_ = results
    by_score = results[first].by_sample() if by_sample else ()
    return Evaluation(mean_loss, scores.pop(first), (), scores, by_score, of_each)


class _Scores:
    """A metric over a data set, of which each process of a launch sees a share."""

    def __init__(self, name: str, metric: Metric, accelerator: "Accelerator") -> None:
        self._name, self._metric, self._accelerator = name, metric, accelerator
        self._values: list[Tensor] = []
        self._updated: Any = None
        if metric.is_updated:
            # A copy: the next data set is scored from nothing.
            self._updated = copy.deepcopy(metric.values).to(accelerator.device)
            self._updated.reset()

    def add(self, outputs: Any, targets: Any, size: int) -> None:
        """Add a batch of so many samples."""
        if self._updated is not None:
            self._updated.update(outputs, targets)
            return
        found = self._metric.values(outputs, targets)
        if not isinstance(found, Tensor) or found.shape != (size,):
            what = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else "no tensor"
            raise TaskError(
                f"metric {self._name!r} must return a number for each of the {size} samples of a "
                f"batch, a tensor of shape ({size},), got {what}: average over all dimensions but "
                "the first, or take a metric of torchmetrics"
            )
        self._values.append(found.detach().double())

    def score(self) -> float:
        """Return the score of all samples."""
        if self._updated is not None:
            return float(self._updated.compute())
        values = torch.cat(self._values)
        own = torch.stack([values.sum(), values.new_tensor(len(values))])
        total, count = sum_over_processes(own, self._accelerator).tolist()
        return self._metric.of(total / count)

    def by_sample(self) -> tuple[float, ...]:
        """Return what each sample adds to the score; empty where the metric does not say."""
        return () if self._updated is not None else _joined(self._values, self._accelerator)


def _joined(parts: list[Tensor] | None, accelerator: "Accelerator") -> tuple[float, ...]:
    """Return all samples' numbers: process after process has every n-th sample.

    None at all if a process has none.
    """
    own = None if parts is None else torch.cat(parts).tolist()
    if accelerator.num_processes == 1:
        return tuple(own or ())
    from accelerate.utils import gather_object

    shares = gather_object([own])
    if any(share is None for share in shares):
        return ()
    return tuple(
        share[row] for row in range(len(shares[0])) for share in shares if row < len(share)
    )


def sum_over_processes(value: Tensor | float, accelerator: "Accelerator") -> Any:
    """Sum a value over the processes of a launch."""
    if accelerator.num_processes == 1:
        return value
    tensor = torch.as_tensor(value, device=accelerator.device)
    return accelerator.reduce(tensor, reduction="sum")
