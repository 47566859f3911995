"""Split, permuted and rotated MNIST: the usual streams, from the 5 000 digits of MNIST-5k.

Their scenarios are those of `van de Ven & Tolias 2019 <https://arxiv.org/abs/1904.07734>`_. Split
MNIST is task-incremental: every task has classes and a head of its own. Permuted and rotated MNIST
are domain-incremental: the classes are the ten digits in every task, and so is the head; what
differs is how the images look.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import cast

import torch
from torch import Tensor

from steppe.compare.data.datasets import (
    Data,
    TensorSamples,
    fingerprint_of,
    mnist_5k,
    samples_of,
)
from steppe.compare.data.streams import arrange_stream

#: Of split MNIST, and of each of its tasks.
SPLIT_TASKS, SPLIT_CLASSES = 5, 2
#: Of permuted and of rotated MNIST, and of each of their tasks.
PERMUTED_TASKS = ROTATED_TASKS = 10
DIGITS = 10

# Fixed, and not a run's seed: every optimizer and every seed gets the same permutations.
_PERMUTATION_SEED = 0


def split_mnist() -> Data:
    """MNIST-5k as five tasks of two digits: 0 and 1, 2 and 3, and so on.

    `Zenke et al. 2017 <https://arxiv.org/abs/1703.04200>`_, task-incremental. A task has 640 images
    of 1×28×28 to train on, 160 for validation and 200 for testing. The target, 2 · task + class, is
    the digit.

    Returns
    -------
    Data
        A stream, see :func:`steppe.compare.data.streams.arrange_stream`.

    Examples
    --------
    >>> [task.targets.unique().tolist() for task in split_mnist().train.datasets]
    [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    """
    mnist = mnist_5k()
    return arrange_stream(
        *samples_of(mnist),
        classes=SPLIT_CLASSES,
        fingerprint=f"{mnist.fingerprint}-split",
    )


def permuted_mnist() -> Data:
    """MNIST-5k ten times, its pixels in another order in each task.

    `Goodfellow et al. 2013 <https://arxiv.org/abs/1312.6211>`_, domain-incremental; ten tasks as in
    van de Ven & Tolias 2019. The first task has the images as they are, every other one a
    permutation that is the same for all of its images, and the same in every study. A task has
    3 200 images of 1×28×28 to train on, 800 for validation and 1 000 for testing; an image is in
    the same part in all tasks. The target is 10 · task + digit.

    Returns
    -------
    Data
        A stream, see :func:`steppe.compare.data.streams.arrange_stream`.
    """
    return _all_digits(partial(_permuted, order=order) for order in _orders())


def rotated_mnist() -> Data:
    """MNIST-5k ten times, turned by 0°, 18°, …, 162°.

    Angles between 0° and 180° as in `Lopez-Paz & Ranzato 2017 <https://arxiv.org/abs/1706.08840>`_,
    who have twenty tasks, domain-incremental. Images are turned counterclockwise about their
    centre, with bilinear interpolation; what comes in from outside is background. Parts and targets
    are those of :func:`permuted_mnist`.

    Returns
    -------
    Data
        A stream, see :func:`steppe.compare.data.streams.arrange_stream`.

    Raises
    ------
    ImportError
        If SciPy is missing.
    """
    step = 180 / ROTATED_TASKS
    return _all_digits(partial(_rotated, degrees=task * step) for task in range(ROTATED_TASKS))


def _all_digits(changes: Iterable[Callable[[Tensor], Tensor]]) -> Data:
    """Make a stream whose n-th task is all of MNIST-5k, changed by the n-th function."""
    mnist, each_change = mnist_5k(), list(changes)
    train, validation, test = (
        _joined([replace(part, inputs=change(part.inputs)) for change in each_change])
        for part in cast(tuple[TensorSamples, ...], samples_of(mnist))
    )
    fingerprint = fingerprint_of(train, validation, test)
    return arrange_stream(train, validation, test, classes=DIGITS, fingerprint=fingerprint)


def _joined(tasks: list[TensorSamples]) -> TensorSamples:
    targets = [task.targets + DIGITS * index for index, task in enumerate(tasks)]
    return TensorSamples(torch.cat([task.inputs for task in tasks]), torch.cat(targets))


def _orders() -> list[Tensor]:
    """Return each task's order of the 784 pixels."""
    generator = torch.Generator().manual_seed(_PERMUTATION_SEED)
    others = [torch.randperm(28 * 28, generator=generator) for _ in range(PERMUTED_TASKS - 1)]
    return [torch.arange(28 * 28), *others]


def _permuted(images: Tensor, order: Tensor) -> Tensor:
    return images.flatten(1)[:, order].reshape(images.shape)


def _rotated(images: Tensor, degrees: float) -> Tensor:
    from scipy import ndimage

    # The darkest pixel is the background, whatever the images were standardised by.
    turned = ndimage.rotate(
        images.numpy(),
        degrees,
        axes=(2, 3),
        reshape=False,
        order=1,
        cval=float(images.min()),
    )
    return torch.from_numpy(turned)
