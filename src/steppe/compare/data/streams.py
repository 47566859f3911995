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
from statistics import fmean
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from steppe.compare.data.datasets import Data, Samples, held_out


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


def hits_and_counts(outputs: Tensor, targets: Tensor, *, classes: int, tasks: int) -> Tensor:
    """Count, for each task of a stream, the samples predicted right and all of them.

    Parameters
    ----------
    outputs, targets, classes
        As in :func:`stream_loss`.
    tasks : int
        In the stream.

    Returns
    -------
    Tensor
        ``(tasks, 2)`` integers, to be added over batches.
    """
    own = (targets // classes)[:, None] == torch.arange(tasks, device=targets.device)
    right = hits(outputs, targets, classes=classes)
    return torch.stack(((own & right[:, None]).sum(dim=0), own.sum(dim=0)), dim=1)


def accuracies(sums: Tensor) -> tuple[float, ...]:
    """Return the accuracy on each task that has samples, from :func:`hits_and_counts`' sums.

    Examples
    --------
    >>> accuracies(torch.tensor([[3, 4], [1, 2]]))
    (0.75, 0.5)
    """
    right, counts = sums[sums[:, 1] > 0].double().T
    return tuple((right / counts).tolist())


def average_accuracy(sums: Tensor) -> float:
    """Return the mean of the tasks' accuracies (Lopez-Paz & Ranzato 2017), as large as they are.

    Examples
    --------
    >>> average_accuracy(torch.tensor([[3, 4], [100, 200]]))
    0.625
    """
    return fmean(accuracies(sums))


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
        ``stream`` holds the tasks' training samples, and ``train`` these one after the other.
        ``plain`` has them mixed, so that its first samples stand for all tasks.
    """
    tasks = train.targets // classes
    rows = [torch.nonzero(tasks == task).flatten() for task in torch.unique(tasks)]
    return _arranged(train, rows, validation, test, fingerprint, classes)


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
    most = max(map(len, data.stream))
    if not 2 <= samples <= most:
        raise ValueError(
            f"samples must be between 2 and the {most} training samples of the largest task, "
            f"got {samples}"
        )
    rows, held = (
        [_first(part.targets, task, data.classes, count) for task in range(len(data.stream))]
        for part, count in ((data.train, samples), (data.validation, samples // 2))
    )
    validation = data.validation.take(torch.cat(held))
    fingerprint = f"{data.fingerprint}-{samples}"
    return _arranged(data.train, rows, validation, data.test, fingerprint, data.classes)


def _outputs_of_own_task(outputs: Tensor, targets: Tensor, classes: int) -> Tensor:
    """Return each sample's outputs for the classes of its own task."""
    if outputs.shape[1] == classes:  # one head, which all tasks share
        return outputs
    samples = torch.arange(len(outputs), device=outputs.device)
    return outputs.reshape(len(outputs), -1, classes)[samples, targets // classes]


def _first(targets: Tensor, task: int, classes: int, count: int) -> Tensor:
    """Return at most ``count`` rows whose targets are among the task's."""
    rows = torch.nonzero(targets // classes == task).flatten()
    return rows[_stratified(targets[rows])[:count]]


def _stratified(targets: Tensor) -> Tensor:
    """Order rows so that every stretch holds the classes in their proportions."""
    return held_out(targets, 0.0)[0]


def _arranged(
    train: Samples,
    tasks: Sequence[Tensor],
    validation: Samples,
    test: Samples,
    fingerprint: str,
    classes: int,
) -> Data:
    rows = torch.cat(list(tasks))
    return Data(
        train=train.take(rows),
        plain=train.take(rows[_stratified(train.targets[rows])]),
        validation=validation,
        test=test,
        fingerprint=fingerprint,
        stream=tuple(train.take(part) for part in tasks),
        classes=classes,
    )
