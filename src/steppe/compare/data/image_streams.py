"""Streams of colour images from files: the five data sets, and Tiny ImageNet class by class."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from steppe._shared.optional_packages import import_optional
from steppe.compare.data.datasets import (
    DATA_DIRECTORY,
    Data,
    fingerprint,
    held_out,
    require_files,
    samples_of,
)
from steppe.compare.data.images import (
    cifar10,
    download_command,
    from_files,
    from_pixels,
    hash_names_and_sizes,
    hold_out_validation,
    tiny_imagenet,
)
from steppe.compare.data.streams import arrange_stream, join

#: Of the streams, and of each task.
FIVE_TASKS, FIVE_CLASSES = 5, 10
TINY_TASKS, TINY_CLASSES = 40, 5

_SIDE = 32

# Means and deviations of the channels, over the training images.
_MNIST = (0.1307,) * 3, (0.3081,) * 3
_SVHN = (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)
_NOTMNIST = (0.4254,) * 3, (0.4501,) * 3
_FASHION_MNIST = (0.2860,) * 3, (0.3530,) * 3

_NOTMNIST_TAR = "http://yaroslavvb.com/upload/notMNIST/notMNIST_small.tar.gz"
# Two files of that archive are no images.
_DAMAGED = {
    "RGVtb2NyYXRpY2FCb2xkT2xkc3R5bGUgQm9sZC50dGY=.png",
    "Q3Jvc3NvdmVyIEJvbGRPYmxpcXVlLnR0Zg==.png",
}


def five_dataset(directory: Path = DATA_DIRECTORY) -> Data:
    """CIFAR-10, MNIST, SVHN, notMNIST and Fashion-MNIST at 3×32×32 (Ebrahimi et al. 2020).

    A tenth of each training set is for validation; a tenth of notMNIST, which comes undivided, is
    for testing. Grey images are enlarged and have three equal channels. None is augmented.

    Parameters
    ----------
    directory : Path, default ``data``
        Where torchvision keeps its data sets, and where the folder ``notMNIST_small`` is.

    Raises
    ------
    FileNotFoundError
        If a file is missing; the message names it and says how to get it.
    ValueError
        If a file of CIFAR-10 or SVHN is damaged.
    ImportError
        If torchvision is missing or broken, or SciPy is missing.
    """
    tasks = (
        cifar10(directory),
        _mnist("MNIST", directory, *_MNIST),
        _svhn(directory),
        _notmnist(directory),
        _mnist("FashionMNIST", directory, *_FASHION_MNIST),
    )
    train, validation, test = (
        join(parts, FIVE_CLASSES) for parts in zip(*map(samples_of, tasks), strict=True)
    )
    prints = "".join(task.fingerprint for task in tasks).encode()
    joint = fingerprint(np.frombuffer(prints, dtype=np.uint8))
    return arrange_stream(train, validation, test, classes=FIVE_CLASSES, fingerprint=joint)


def tiny_imagenet_stream(directory: Path = DATA_DIRECTORY) -> Data:
    """Tiny ImageNet's 200 classes as 40 tasks of five (Gupta et al. 2020, La-MAML), unaugmented.

    The classes come in the order of ``wnids.txt``. Parts, files and errors are those of
    :func:`steppe.compare.data.images.tiny_imagenet`.
    """
    images = tiny_imagenet(directory)
    return arrange_stream(
        *samples_of(images),
        classes=TINY_CLASSES,
        fingerprint=f"{images.fingerprint}-stream",
    )


def _mnist(
    name: str, directory: Path, mean: tuple[float, ...], deviation: tuple[float, ...]
) -> Data:
    dataset = getattr(import_optional("torchvision.datasets"), name)
    folder = directory / name / "raw"
    names = [archive.removesuffix(".gz") for archive, _ in dataset.resources]
    require_files(
        [folder / each for each in names], download_command(name, directory, "download=True")
    )
    parts = [dataset(directory, train=train) for train in (True, False)]
    values = [(part.data.numpy(), part.targets.numpy()) for part in parts]
    return _from_arrays(values, _to_colour_tensor(mean, deviation))


def _svhn(directory: Path) -> Data:
    dataset = import_optional("torchvision.datasets").SVHN
    command = download_command("SVHN", directory, "'train', download=True", "'test', download=True")
    files = [directory / dataset.split_list[split][1] for split in ("train", "test")]
    require_files(files, command)
    try:
        parts = [dataset(directory, split) for split in ("train", "test")]
    except RuntimeError as error:  # a checksum is wrong
        raise ValueError(f"{files[0]} or {files[1]} is damaged: {command}") from error
    values = [(part.data.transpose(0, 2, 3, 1), part.labels) for part in parts]
    return _from_arrays(values, _to_colour_tensor(*_SVHN))


def _notmnist(directory: Path) -> Data:
    folder = directory / "notMNIST_small"
    folders = [folder / letter for letter in "ABCDEFGHIJ"]
    require_files(
        folders, f"mkdir -p '{directory}' && curl {_NOTMNIST_TAR} | tar xz -C '{directory}'"
    )
    samples = [
        (path, label)
        for label, letter in enumerate(folders)
        for path in sorted(letter.glob("*.png"))
        if path.name not in _DAMAGED
    ]
    images = from_files(samples, _to_colour_tensor(*_NOTMNIST))
    rest, tested = held_out(images.targets, 1 / 10)
    return hold_out_validation(
        images.take(rest), images.take(tested), 1 / 10, hash_names_and_sizes(folder, samples)
    )


def _from_arrays(values: list[tuple[Any, Any]], transform: Callable[[Any], Tensor]) -> Data:
    train, test = (from_pixels(pixels, targets, transform) for pixels, targets in values)
    of_all = fingerprint(*(array for part in values for array in part))
    return hold_out_validation(train, test, 1 / 10, of_all)


def _to_colour_tensor(
    mean: tuple[float, ...], deviation: tuple[float, ...]
) -> Callable[[Any], Tensor]:
    transforms = import_optional("torchvision.transforms")
    made: Callable[[Any], Tensor] = transforms.Compose(
        [
            transforms.Resize((_SIDE, _SIDE)),
            transforms.ToTensor(),
            _three_channels,
            transforms.Normalize(mean, deviation),
        ]
    )
    return made


def _three_channels(image: Tensor) -> Tensor:
    return image.expand(3, -1, -1)
