"""What there is to train on: one record a task."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from steppe.commands.wording import unknown
from steppe.compare import data, models
from steppe.compare.data import Data

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Task:
    """A data set, a model for it, and how long to train.

    Attributes
    ----------
    name : str
        What the command line calls it.
    load : callable
        Returns the data. Called with a directory if ``reads_files``, else with nothing.
    model : callable
        Returns a new model, its weights drawn from torch's global generator.
    epochs, batch_size : int
        Defaults, enough to converge.
    threads : int or None, default None
        CPU threads by default; None leaves torch's own choice. Tiny models are fastest on 1.
    loss : callable, default cross-entropy
        ``loss(outputs, targets)``, the mean over the batch.
    reads_files : bool, default False
        Whether the data lies in a directory that the user can choose.
    """

    name: str
    load: Callable[..., Data]
    model: Callable[[], nn.Module]
    epochs: int
    batch_size: int
    threads: int | None = None
    loss: Loss = F.cross_entropy
    reads_files: bool = False

    def data(self, directory: Path | None = None) -> Data:
        """Load the data, from ``directory`` if the task reads files.

        Raises
        ------
        FileNotFoundError
            If the files are not there.
        ValueError
            If a directory is given to a task that reads no files.
        """
        if directory is None:
            return self.load()
        if not self.reads_files:
            raise ValueError(f"{self.name} comes inside a Python package: --data is not for it")
        return self.load(directory)


_ALL = (
    Task("digits", data.digits, models.mlp, epochs=50, batch_size=32, threads=1),
    Task("mnist-5k", data.mnist_5k, models.small_cnn, epochs=15, batch_size=64),
    Task(
        "fashion-mnist",
        data.fashion_mnist,
        models.small_cnn,
        epochs=5,
        batch_size=128,
        reads_files=True,
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
    >>> find_task("digits").batch_size
    32
    """
    if name not in TASKS:
        raise ValueError(unknown("task", name, TASKS))
    return TASKS[name]
