"""A stream of five tasks from what packages bring: nothing is downloaded."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from steppe.compare.data.datasets import (
    FASHION_MNIST,
    Data,
    Tensors,
    digits,
    fashion_mnist,
    fingerprint_of,
    held_out,
    mnist_5k,
)
from steppe.compare.data.glyphs import glyphs
from steppe.compare.data.streams import stream

#: Of the stream, and of each task.
TASKS, CLASSES = 5, 10

_SIDE = 28


def five_digits(directory: Path = FASHION_MNIST) -> Data:
    """Five tasks of ten classes, 28×28 and grey.

    In this order: half of Fashion-MNIST; MNIST-5k; scikit-learn's 8×8 digits, enlarged; the letters
    A to J (:func:`steppe.compare.data.glyphs.glyphs`); and the other half of Fashion-MNIST, as
    negatives that lie on their side. Each is standardised by its own training images.

    Parameters
    ----------
    directory : Path
        Where Fashion-MNIST's ``.gz`` files are; the default is where Debian's package puts them.

    Raises
    ------
    FileNotFoundError
        If a file, or a folder of fonts, is missing; the message names it and says how to get it.
    ValueError
        If a file is damaged.
    """
    train, validation, test = map(_joined, zip(*_tasks(directory), strict=True))
    whole = fingerprint_of(train, validation, test)
    return stream(train, validation, test, classes=CLASSES, fingerprint=whole)


def _tasks(directory: Path) -> list[list[Tensors]]:
    """Return what is to train on, for validation, and for testing, of each task."""
    letters = glyphs()  # first, as they may be missing
    clothes = [_halves(part) for part in _parts(fashion_mnist(directory))]
    tasks = (
        [upright for upright, _ in clothes],
        _parts(mnist_5k()),
        [_changed(part, _enlarged) for part in _parts(digits())],
        letters,
        [_changed(lying, _lying_negative) for _, lying in clothes],
    )
    return [_standardised(*task) for task in tasks]


def _parts(data: Data) -> list[Tensors]:
    return cast(list[Tensors], [data.plain, data.validation, data.test])


def _halves(whole: Tensors) -> tuple[Tensors, Tensors]:
    first, second = held_out(whole.targets, 1 / 2)
    return whole.take(first), whole.take(second)


def _changed(samples: Tensors, change: Callable[[Tensor], Tensor]) -> Tensors:
    return replace(samples, inputs=change(samples.inputs))


def _enlarged(images: Tensor) -> Tensor:
    return F.interpolate(images, size=(_SIDE, _SIDE), mode="bilinear")


def _lying_negative(images: Tensor) -> Tensor:
    return -torch.rot90(images, dims=(2, 3))


def _standardised(*parts: Tensors) -> list[Tensors]:
    """Mean 0 and deviation 1 over all pixels of the first part, which is trained on."""
    deviation, mean = (each.float() for each in torch.std_mean(parts[0].inputs.double()))
    return [_changed(part, lambda images: (images - mean) / deviation) for part in parts]


def _joined(tasks: Iterable[Tensors]) -> Tensors:
    inputs, targets = zip(
        *((task.inputs, task.targets + CLASSES * place) for place, task in enumerate(tasks)),
        strict=True,
    )
    return Tensors(torch.cat(inputs), torch.cat(targets))
