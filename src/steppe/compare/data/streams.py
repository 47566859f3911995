"""Streams of tasks that are learnt one after the other: their loss, scores and samples.

One network learns tasks of ``classes`` classes each, one after the other; class ``c`` of task ``t``
is the target ``classes · t + c``. What loss and prediction look at depends on how many outputs the
network has (`van de Ven & Tolias 2019 <https://arxiv.org/abs/1904.07734>`_):

- ``tasks · classes`` outputs, task-incremental learning: every task has a head of its own. The task
  of a sample is known, in training and in testing, and only its own head counts.
- ``classes`` outputs, domain-incremental learning: the tasks share one head. The task of a sample
  is not known; targets hold it so that each task is scored for itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from steppe.compare.data.datasets import (
    Data,
    Samples,
    Stream,
    as_samples,
    held_out,
    parts_of,
    size_of,
)


def stream_loss(outputs: Tensor, targets: Tensor, *, classes: int) -> Tensor:
    """Cross-entropy of each sample over the classes of its own task, the mean over the batch.

    Parameters
    ----------
    outputs : Tensor
        ``(samples, tasks · classes)``, or ``(samples, classes)`` if the tasks share one head.
    targets : Tensor
        ``classes · task + class`` of each sample.
    classes : int
        Of a task.

    Examples
    --------
    >>> outputs = torch.tensor([[9.0, 9.0, 0.0, 0.0]])
    >>> round(float(stream_loss(outputs, torch.tensor([3]), classes=2)), 4)
    0.6931
    >>> round(float(stream_loss(outputs[:, :2], torch.tensor([3]), classes=2)), 4)
    0.6931
    """
    return F.cross_entropy(_outputs_of_own_task(outputs, targets, classes), targets % classes)


def hits(outputs: Tensor, targets: Tensor, *, classes: int) -> Tensor:
    """Return whether each sample is predicted right, among the classes of its own task.

    Parameters
    ----------
    outputs, targets, classes
        As in :func:`stream_loss`.
    """
    return _outputs_of_own_task(outputs, targets, classes).argmax(dim=1) == targets % classes


@dataclass(frozen=True, eq=False)
class JoinedSamples(Samples):
    """Samples of several data sets, each read from its own set when it is asked for.

    Attributes
    ----------
    parts : tuple of Samples
        The sets.
    origins : Tensor
        ``(samples, 2)``: for each sample its part, and its row there.
    targets : Tensor
        One a sample, whatever its part says.
    """

    parts: tuple[Samples, ...]
    origins: Tensor
    targets: Tensor

    def __getitem__(self, row: int) -> tuple[Any, int]:
        part, row_of_part = self.origins[row].tolist()
        return self.parts[part][row_of_part][0], int(self.targets[row])

    def take(self, rows: Tensor) -> Self:
        """Return the samples of these rows, in this order."""
        return replace(self, origins=self.origins[rows], targets=self.targets[rows])


def join(parts: Sequence[Samples], classes: int) -> JoinedSamples:
    """Join data sets into the samples of a stream, whose n-th task is the n-th data set."""
    origins = [
        torch.stack((torch.full((len(part),), task), torch.arange(len(part))), dim=1)
        for task, part in enumerate(parts)
    ]
    targets = [part.targets + classes * task for task, part in enumerate(parts)]
    return JoinedSamples(tuple(parts), torch.cat(origins), torch.cat(targets))


def arrange_stream(
    train: Samples, validation: Samples, test: Samples, *, classes: int, fingerprint: str
) -> Data:
    """Arrange the samples of all tasks as a stream.

    Parameters
    ----------
    train, validation, test : Samples
        Of all tasks, in any order.
    classes : int
        Of a task: the targets tell the tasks.
    fingerprint : str
        Of the samples.

    Returns
    -------
    Data
        Its parts are the tasks, in order.
    """
    parts = [_by_task(samples, classes) for samples in (train, validation, test)]
    return Data(parts[0], parts[1], parts[2], fingerprint=fingerprint)


def subsample(data: Data, samples: int) -> Data:
    """Keep only so many training samples of each task, always the same ones.

    The classes of a task keep their proportions, and a larger choice contains every smaller one. A
    task that has no more stays whole. Of a task's validation samples at most half as many are kept;
    the test set stays whole.

    Parameters
    ----------
    data : Data
        A stream.
    samples : int
        How many of each task, at least 2.

    Raises
    ------
    ValueError
        If no task has that many.
    """
    most = max(map(size_of, parts_of(data.train)))
    if not 2 <= samples <= most:
        raise ValueError(
            f"samples must be between 2 and the {most} training samples of the largest task, "
            f"got {samples}"
        )
    return Data(
        _first(data.train, samples),
        _first(data.validation, samples // 2),
        data.test,
        fingerprint=f"{data.fingerprint}-{samples}",
    )


def _outputs_of_own_task(outputs: Tensor, targets: Tensor, classes: int) -> Tensor:
    """Return each sample's outputs for the classes of its own task."""
    if outputs.shape[1] == classes:  # one head, which all tasks share
        return outputs
    samples = torch.arange(len(outputs), device=outputs.device)
    return outputs.reshape(len(outputs), -1, classes)[samples, targets // classes]


def _by_task(samples: Samples, classes: int) -> Stream:
    tasks = samples.targets // classes
    return Stream(samples.take((tasks == task).nonzero().flatten()) for task in torch.unique(tasks))


def _first(stream: Dataset[Any], count: int) -> Stream:
    """Keep at most so many samples of each task, with its classes in their proportions."""
    tasks = map(as_samples, parts_of(stream))
    return Stream(task.take(held_out(task.targets, 0.0)[0][:count]) for task in tasks)
