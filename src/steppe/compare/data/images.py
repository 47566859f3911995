"""Colour images from files: CIFAR, Tiny ImageNet and ImageNet, augmented as is usual for each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from steppe._shared.optional_packages import import_optional
from steppe.compare.data.datasets import (
    DATA_DIRECTORY,
    Data,
    Samples,
    fingerprint,
    held_out,
    require_files,
)

# Means and deviations of the channels, over the training images.
_CIFAR10 = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
_CIFAR100 = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
_TINY_IMAGENET = (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_TINY_IMAGENET_ZIP = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"


@dataclass(frozen=True, eq=False)
class ImageSamples(Samples):
    """Images that are read and transformed each time they are asked for.

    Random transforms draw from torch's global generator.

    Attributes
    ----------
    source : sequence
        Arguments of ``read``: pixels, or paths of files.
    rows, targets : Tensor
        For each sample its index in ``source``, and its class index.
    read : callable
        Returns the Pillow image.
    transform : callable
        Makes a tensor of it.
    """

    source: Sequence[Any]
    rows: Tensor
    targets: Tensor
    read: Callable[[Any], Any]
    transform: Callable[[Any], Tensor]

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        image = self.read(self.source[int(self.rows[row])])
        return self.transform(image), int(self.targets[row])

    def take(self, rows: Tensor) -> Self:
        """Return the samples of these rows, in this order."""
        return replace(self, rows=self.rows[rows], targets=self.targets[rows])


def cifar10(directory: Path = DATA_DIRECTORY) -> Data:
    """CIFAR-10: 50 000 training images of 32×32 pixels, a tenth for validation, and 10 000 to test.

    In training each is cropped at random after padding with 4 black pixels, and mirrored half the
    time (He et al. 2016).

    Parameters
    ----------
    directory : Path, default ``data``
        Where the folder ``cifar-10-batches-py`` of the Python version is.

    Raises
    ------
    FileNotFoundError
        If a file is missing; the message names it and says how to get it.
    ValueError
        If a file is damaged.
    ImportError
        If torchvision is missing or broken.
    """
    return _cifar("CIFAR10", directory, *_CIFAR10)


def cifar100(directory: Path = DATA_DIRECTORY) -> Data:
    """CIFAR-100: as :func:`cifar10`, in the folder ``cifar-100-python``."""
    return _cifar("CIFAR100", directory, *_CIFAR100)


def tiny_imagenet(directory: Path = DATA_DIRECTORY) -> Data:
    """Tiny ImageNet: 100 000 training images of 64×64 pixels in 200 classes.

    A tenth is for validation. Its own 10 000 validation images are for testing, as its test images
    have no labels. In training each image is cropped at random after padding with 8 black pixels,
    and mirrored half the time.

    Parameters
    ----------
    directory : Path, default ``data``
        Where the folder ``tiny-imagenet-200`` is.

    Raises
    ------
    FileNotFoundError
        If a file is missing; the message names it and says how to get it.
    ImportError
        If torchvision is missing or broken.
    """
    folder = directory / "tiny-imagenet-200"
    archive = f"{folder}.zip"
    command = (
        f"curl --create-dirs -o '{archive}' {_TINY_IMAGENET_ZIP} && "
        f"unzip -q '{archive}' -d '{directory}'"
    )
    train, test = _tiny_imagenet_files(folder, command)
    plain = _to_standardised_tensor(*_TINY_IMAGENET)
    return hold_out_validation(
        from_files(train, plain),
        from_files(test, plain),
        1 / 10,
        hash_names_and_sizes(folder, train + test),
        _crop_and_mirror(64, 8, plain),
    )


def imagenet(directory: Path = DATA_DIRECTORY / "imagenet") -> Data:
    """ImageNet (ILSVRC 2012): 1.28 million training images, a fiftieth for validation.

    Its 50 000 validation images are for testing. In training a random part of an image, 8 % to
    100 % of it, is scaled to 224×224 pixels and mirrored half the time; else the middle 224×224
    pixels are taken of the image with its shorter side scaled to 256 (He et al. 2016).

    Parameters
    ----------
    directory : Path, default ``data/imagenet``
        Where the folders ``train`` and ``val`` are, with a folder a class in each.

    Raises
    ------
    FileNotFoundError
        If a folder is missing; the message names it and says how to make it.
    ValueError
        If the two folders differ in their classes.
    ImportError
        If torchvision is missing or broken.
    """
    command = (
        f'python -c "from torchvision.datasets import ImageNet as I; '
        f"I({str(directory)!r}, 'train'), I({str(directory)!r}, 'val')\", after downloading "
        "ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz from "
        f"https://image-net.org/download into {directory}"
    )
    folders = [directory / "train", directory / "val"]
    require_files(folders, command)
    train, test = (
        import_optional("torchvision.datasets").ImageFolder(folder) for folder in folders
    )
    if train.classes != test.classes:
        odd = sorted({*train.classes} ^ {*test.classes})
        raise ValueError(f"{folders[0]} and {folders[1]} differ in their classes: {odd[0]}")
    transforms = import_optional("torchvision.transforms")
    to_tensor = _to_standardised_tensor(*_IMAGENET)
    plain = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), to_tensor])
    augmented = transforms.Compose(
        [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), to_tensor]
    )
    return hold_out_validation(
        from_files(train.samples, plain),
        from_files(test.samples, plain),
        1 / 50,
        hash_names_and_sizes(directory, train.samples + test.samples),
        augmented,
    )


def from_pixels(
    values: Any, targets: list[int], transform: Callable[[Any], Tensor]
) -> ImageSamples:
    """Make samples of arrays of unsigned bytes, one an image, and their class indices."""
    read = import_optional("PIL.Image").fromarray
    return ImageSamples(values, torch.arange(len(targets)), torch.tensor(targets), read, transform)


def from_files(
    samples: Sequence[tuple[Path | str, int]], transform: Callable[[Any], Tensor]
) -> ImageSamples:
    """Make samples of files of images, each with its class index."""
    read = import_optional("torchvision.datasets.folder").default_loader
    paths, targets = zip(*samples, strict=True)
    return ImageSamples(paths, torch.arange(len(paths)), torch.tensor(targets), read, transform)


def hold_out_validation(
    rest: ImageSamples,
    test: ImageSamples,
    validated: float,
    fingerprint: str,
    augmented: Callable[[Any], Tensor] | None = None,
) -> Data:
    """Hold out a share for validation; train on the others, augmented if there is a transform."""
    kept, held = held_out(rest.targets, validated)
    plain = rest.take(kept)
    train = replace(plain, transform=augmented or plain.transform)
    return Data(train, rest.take(held), test, plain=plain, fingerprint=fingerprint)


def download_command(name: str, directory: Path, *arguments: str) -> str:
    """Return the command by which torchvision downloads a data set."""
    made = ", ".join(f"{name}({str(directory)!r}, {each})" for each in arguments)
    return f'python -c "from torchvision.datasets import {name}; {made}"'


def hash_names_and_sizes(folder: Path, samples: Sequence[tuple[Path | str, int]]) -> str:
    """Hash the names of files below a folder, and their sizes."""
    paths = (Path(path) for path, _ in samples)
    lines = (f"{path.relative_to(folder)} {path.stat().st_size}\n" for path in paths)
    return fingerprint(np.frombuffer("".join(lines).encode(), dtype=np.uint8))


def _tiny_imagenet_files(
    folder: Path, command: str
) -> tuple[list[tuple[Path, int]], list[tuple[Path, int]]]:
    """List files to train on and to test on, each with its class: its line in ``wnids.txt``."""
    names = folder / "wnids.txt"
    annotations = folder / "val" / "val_annotations.txt"
    require_files([names, annotations], command)
    classes = {name: label for label, name in enumerate(names.read_text().split())}
    folders = [folder / "train" / name / "images" for name in classes]
    require_files(folders, command)
    train = [
        (path, label)
        for label, images in enumerate(folders)
        for path in sorted(images.glob("*.JPEG"))
    ]
    lines = (line.split("\t") for line in annotations.read_text().splitlines())
    test = [(folder / "val" / "images" / name, classes[label]) for name, label, *_ in lines]
    require_files([path for path, _ in test], command)
    return train, test


def _cifar(
    name: str, directory: Path, mean: tuple[float, ...], deviation: tuple[float, ...]
) -> Data:
    dataset = getattr(import_optional("torchvision.datasets"), name)
    folder = directory / dataset.base_folder
    command = download_command(name, directory, "download=True")
    files = [file for file, _ in dataset.train_list + dataset.test_list]
    require_files([folder / file for file in (*files, dataset.meta["filename"])], command)
    try:
        parts = dataset(directory, train=True), dataset(directory, train=False)
    except RuntimeError as error:  # a checksum is wrong
        raise ValueError(f"{folder} is damaged: delete it, then {command}") from error
    plain = _to_standardised_tensor(mean, deviation)
    train, test = (from_pixels(part.data, part.targets, plain) for part in parts)
    values = (np.asarray(value) for part in parts for value in (part.data, part.targets))
    return hold_out_validation(
        train, test, 1 / 10, fingerprint(*values), _crop_and_mirror(32, 4, plain)
    )


def _to_standardised_tensor(
    mean: tuple[float, ...], deviation: tuple[float, ...]
) -> Callable[[Any], Tensor]:
    transforms = import_optional("torchvision.transforms")
    to_tensor: Callable[[Any], Tensor] = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize(mean, deviation)]
    )
    return to_tensor


def _crop_and_mirror(
    side: int, padding: int, to_tensor: Callable[[Any], Tensor]
) -> Callable[[Any], Tensor]:
    transforms = import_optional("torchvision.transforms")
    augmented: Callable[[Any], Tensor] = transforms.Compose(
        [
            transforms.RandomCrop(side, padding=padding),
            transforms.RandomHorizontalFlip(),
            to_tensor,
        ]
    )
    return augmented
