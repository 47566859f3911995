"""What there is to train on: one record a task."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from steppe.compare import data, images
from steppe.compare.data import Data, fewer
from steppe.compare.models import Shape, find_model
from steppe.compare.results import Metric
from steppe.names import named

Loss = Callable[[Tensor, Tensor], Tensor]

ACCURACY = Metric()


@dataclass(frozen=True)
class Size:
    """How much to train.

    Attributes
    ----------
    model : str
        One of :data:`steppe.compare.models.MODELS`.
    epochs, batch_size : int
        Enough to converge, if the task is at its full size.
    samples : int or None, default None
        Training samples, None for all.
    """

    model: str
    epochs: int
    batch_size: int
    samples: int | None = None


def hits(outputs: Tensor, targets: Tensor) -> Tensor:
    """Count the samples of a batch whose largest output is the target's."""
    return (outputs.argmax(dim=1) == targets).sum()


@dataclass(frozen=True)
class Task:
    """A data set, the models for it, and how a model is trained and scored.

    A new task is one of these and a function that loads its data.

    Attributes
    ----------
    name : str
        What the command line calls it.
    load : callable
        Returns the data. Called with a directory if ``reads_files`` and the user names one, else
        with nothing.
    shape : tuple of int
        Channels, height and width of an input.
    classes : int
        Outputs of a model.
    full, small : Size
        As published, or as far as that converges; and what takes a CPU minutes.
    loss : callable, default cross-entropy
        ``loss(outputs, targets)``, the mean over the batch.
    metric : Metric, default accuracy
        What the score is called, and its unit.
    correct : callable, default the hits of the largest output
        ``correct(outputs, targets)``, a batch's part of the score: the sum over batches, divided
        by the number of samples, is what ``metric`` names. Another score is another such sum.
    threads : int or None, default None
        CPU threads by default; None leaves torch's own choice. Tiny models are fastest on 1.
    reads_files : bool, default False
        Whether the data lies in a directory that the user can choose.
    loaders : int, default 0
        Processes that it takes to prepare batches as fast as an accelerator trains on them.
    """

    name: str
    load: Callable[..., Data]
    shape: Shape
    classes: int
    full: Size
    small: Size
    loss: Loss = F.cross_entropy
    metric: Metric = ACCURACY
    correct: Callable[[Tensor, Tensor], Tensor] = hits
    threads: int | None = None
    reads_files: bool = False
    loaders: int = 0

    def data(self, directory: Path | None = None, samples: int | None = None) -> Data:
        """Load the data, from ``directory`` if the task reads files.

        Parameters
        ----------
        directory : Path, optional
            Default: the task's own.
        samples : int, optional
            Train on only so many, see :func:`steppe.compare.data.fewer`. Default: on all.

        Raises
        ------
        FileNotFoundError
            If the files are not there.
        ValueError
            If a directory is given to a task that reads no files, or there are fewer samples.
        """
        if directory is not None and not self.reads_files:
            raise ValueError(f"{self.name} comes inside a Python package: --data is not for it")
        found = self.load() if directory is None else self.load(directory)
        return found if samples is None else fewer(found, samples)

    def model(self, name: str) -> nn.Module:
        """Make the model of that name for this task, its weights from torch's global generator.

        Raises
        ------
        ValueError
            If there is no such model, or it cannot take the task's images.
        """
        return find_model(name)(self.shape, self.classes)


# What CIFAR's images and those of their size are trained with.
_colour = partial(
    Task,
    full=Size("resnet18", epochs=200, batch_size=128),
    small=Size("small-cnn", epochs=10, batch_size=64, samples=5_000),
    reads_files=True,
    loaders=4,
)

_ALL = (
    Task(
        "digits",
        data.digits,
        shape=(1, 8, 8),
        classes=10,
        full=Size("mlp", epochs=50, batch_size=32),
        small=Size("mlp", epochs=50, batch_size=32),
        threads=1,
    ),
    Task(
        "mnist-5k",
        data.mnist_5k,
        shape=(1, 28, 28),
        classes=10,
        full=Size("small-cnn", epochs=15, batch_size=64),
        small=Size("small-cnn", epochs=8, batch_size=64),
    ),
    Task(
        "fashion-mnist",
        data.fashion_mnist,
        shape=(1, 28, 28),
        classes=10,
        full=Size("small-cnn", epochs=20, batch_size=128),
        small=Size("small-cnn", epochs=8, batch_size=64, samples=5_000),
        reads_files=True,
    ),
    _colour("cifar10", images.cifar10, shape=(3, 32, 32), classes=10),
    _colour("cifar100", images.cifar100, shape=(3, 32, 32), classes=100),
    _colour("tiny-imagenet", images.tiny_imagenet, shape=(3, 64, 64), classes=200),
    Task(
        "imagenet",
        images.imagenet,
        shape=(3, 224, 224),
        classes=1000,
        full=Size("resnet50", epochs=90, batch_size=256),
        small=Size("resnet18", epochs=1, batch_size=64, samples=5_000),
        reads_files=True,
        loaders=8,
    ),
)
TASKS = {task.name: task for task in _ALL}


def find_task(name: str) -> Task:
    """Find the task of that name.

    Raises
    ------
    ValueError
        If there is none; the message lists those there are.

    Examples
    --------
    >>> find_task("digits").full
    Size(model='mlp', epochs=50, batch_size=32, samples=None)
    """
    return named("task", name, TASKS)
