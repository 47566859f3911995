"""Batches of a data set for a model, and the model's loss and score on a data set.

Training reads its batches here, and evaluates after each epoch and at its end.
"""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.data import DataLoader, Dataset, Subset

from steppe.compare.data.datasets import Stream, parts_of, size_of
from steppe.compare.data.loading import Part, loader
from steppe.compare.metrics.scores import Metric, losses_by_sample
from steppe.compare.models.language_models import Recurrent, carried_state, columns
from steppe.compare.tasks.task import Task, targets_of
from steppe.compare.tasks.trace import TaskError

if TYPE_CHECKING:
    from accelerate import Accelerator

Change = Callable[[Any], Any]

_BATCH_SIZE = 500
# Numbers in the inputs of a batch that is larger than in training: 500 images of MNIST have fewer.
_NUMBERS = 1 << 19
# As so many numbers counts an index: embeddings and logits are wide.
_INDEX_WIDTH = 256


def evaluated_at_once(dataset: "Dataset[Any]", batch_size: int, sample_length: int = 1) -> int:
    """Return how many samples are evaluated at once: many small ones, else as many as in training.

    Parameters
    ----------
    dataset : Dataset
        The samples; the first one tells how large they are.
    batch_size : int
        Samples of a batch in training, for which there is memory.
    sample_length : int, default 1
        Tokens of a sample, where the task says so.
    """
    if sample_length > 1:
        return max(1, _BATCH_SIZE // sample_length)
    largest = max(map(_numbers_of, tree_leaves(dataset[0])), default=_NUMBERS)
    return max(batch_size, min(_BATCH_SIZE, _NUMBERS // max(1, largest)))


def _numbers_of(value: Any) -> int:
    """Count a tensor's numbers; what is not known to be small is large."""
    if isinstance(value, int | float | str | bytes | None):
        return 1
    if not isinstance(value, Tensor | np.ndarray | np.generic) or value.dtype == object:
        return _NUMBERS
    tensor = torch.as_tensor(value)
    are_indices = not (tensor.is_floating_point() or tensor.is_complex()) and tensor.numel() > 1
    return tensor.numel() * (_INDEX_WIDTH if are_indices else 1)


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


def evaluate(
    model: nn.Module,
    task: Task,
    dataset: "Dataset[Any]",
    accelerator: "Accelerator",
    *,
    sample_length: int,
    batch_size: int = _BATCH_SIZE,
    workers: int = 0,
    by_sample: bool = False,
    change: Change | None = None,
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
    batch_size : int, default 500
        Samples of a batch in training. Losses of outputs are evaluated in larger batches where
        samples are small; a step of the user's own without a weight in batches of this size, as it
        may compare the samples of a batch with each other.
    workers : int, default 0
        Processes that prepare batches.
    by_sample : bool, default False
        Whether each sample's results are returned too.
    change : callable, optional
        ``change(batch)`` returns what the model sees in the place of a batch.
    """
    if task.step is None or task.weight is not None:
        batch_size = evaluated_at_once(parts_of(dataset)[0], batch_size, sample_length)
    model.eval()
    with torch.no_grad():
        found = [
            _evaluate_part(model, task, part, accelerator, batch_size, workers, by_sample, change)
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
    change: Change | None,
) -> Evaluation:
    from accelerate.utils import send_to_device

    process, processes = accelerator.process_index, accelerator.num_processes
    share = Subset(dataset, range(process, size_of(dataset), processes))
    results = {name: _Scores(name, metric, accelerator) for name, metric in task.metrics.items()}
    losses = _Losses(task, accelerator, by_sample=by_sample)
    batches = batches_for(model, share, batch_size, workers=workers, collate=task.collate_evaluated)
    with carried_state(model) as advance:
        for (part,) in batches:
            batch, size = send_to_device(part.batch, accelerator.device), part.size
            if change is not None:
                batch = change(batch)
            mean, outputs, targets = outputs_without_graph(task, model, batch)
            losses.add(mean, outputs, targets, size)
            for result in results.values():
                result.add(outputs, targets, size)
            advance()
    mean_loss = losses.mean()
    scores = {name: result.score() for name, result in results.items()}
    of_each = losses.by_sample() if by_sample else ()
    if not results:
        return Evaluation(mean_loss, mean_loss, (), {}, of_each, of_each)
    first, *_ = results
    by_score = results[first].by_sample() if by_sample else ()
    return Evaluation(mean_loss, scores.pop(first), (), scores, by_score, of_each)


def outputs_without_graph(task: Task, model: nn.Module, batch: Any) -> tuple[Tensor, Any, Any]:
    """Return loss, outputs and targets of a batch, with gradients only if the task takes some.

    Forces are gradients of an energy, and equations hold derivatives of a network's outputs.

    Parameters
    ----------
    task : Task
        Says how a batch is computed.
    model : nn.Module
        The model, in the mode that it is in.
    batch
        One of the task's, on the model's device.
    """
    try:
        return _computed(task, model, batch)
    except RuntimeError as error:
        if "does not require grad" not in str(error):
            raise
    with torch.enable_grad():
        mean, outputs, targets = _computed(task, model, batch)
    return mean.detach(), tree_map_only(Tensor, Tensor.detach, outputs), targets


def _computed(task: Task, model: nn.Module, batch: Any) -> tuple[Tensor, Any, Any]:
    # A step of the user's own may score no outputs.
    scored = task.step is None or bool(task.metrics)
    outputs, targets = task.outputs(model, batch) if scored else (None, targets_of(batch))
    mean = task.batch_loss(model, batch) if task.step else task.loss_of(outputs, targets)
    return mean, outputs, targets


class _Losses:
    """The loss over a data set: the mean of its batches' losses, weighted by what these are of."""

    def __init__(self, task: Task, accelerator: "Accelerator", *, by_sample: bool) -> None:
        self._task, self._accelerator = task, accelerator
        self._sums = torch.zeros(2, dtype=torch.float64, device=accelerator.device)
        # Losses and weights of each sample; None where they are not known.
        self._of_each: list[tuple[Tensor, Tensor]] | None = None
        # A loss that the model returns is the batch's, however outputs are cut.
        if by_sample and task.loss is not None:
            self._of_each = []

    def add(self, mean: Tensor, outputs: Any, targets: Any, size: int) -> None:
        """Add a batch of so many samples, of this mean loss."""
        task = self._task
        weight = task.weight_of(outputs, targets, size)
        if weight:
            self._sums += torch.stack([mean.double() * weight, self._sums.new_tensor(weight)])
        if self._of_each is None:
            return
        assert task.loss is not None
        found = losses_by_sample(task.loss, outputs, targets, size, float(mean), task.weight)
        if found is None:
            self._of_each = None
        else:
            self._of_each.append(found)

    def mean(self) -> float:
        """Return the mean over all samples, of all processes; NaN where nothing weighs anything."""
        total, weight = sum_over_processes(self._sums, self._accelerator).tolist()
        return total / weight if weight else math.nan

    def by_sample(self) -> tuple[float, ...]:
        """Return what each sample adds to the mean; empty where it is not known.

        A sample of weight w and loss l adds L + w (l − L)/w̄ to the mean L: so the mean of these is
        L, and their variance that of a ratio of two means.
        """
        known = self._of_each
        losses = _joined(None if known is None else [loss for loss, _ in known], self._accelerator)
        weights = _joined(None if known is None else [each for _, each in known], self._accelerator)
        if not losses or len(set(weights)) == 1:
            return losses
        mean, usual = self.mean(), fmean(weights)
        pairs = zip(losses, weights, strict=True)
        return tuple(mean + weight * (loss - mean) / usual for loss, weight in pairs)


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
            found = self._updated.compute()
            if not isinstance(found, Tensor | float | int) or torch.as_tensor(found).numel() != 1:
                raise TaskError(
                    f"metric {self._name!r} computes {type(found).__name__} of several numbers, "
                    "expected one: average over classes, as with average='macro'"
                )
            return float(found)
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
