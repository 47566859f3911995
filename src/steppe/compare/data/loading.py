"""Batches of a data set, in an order that a generator decides."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    RandomSampler,
    Sampler,
    Subset,
    WeightedRandomSampler,
    default_collate,
)

from steppe.compare.data.datasets import Rows, size_of

Collate = Callable[[list[Any]], Any]


class Part(NamedTuple):
    """A batch, or a part of one whose gradients are accumulated, with its number of samples."""

    batch: Any
    size: int


def loader(
    dataset: Dataset[Any],
    batch_size: int,
    *,
    order: torch.Generator | None = None,
    weights: Sequence[float] | None = None,
    workers: int = 0,
    batches: Sequence[Sequence[int]] | None = None,
    collate: Collate | None = None,
    parts: int = 1,
) -> DataLoader[list[Part]]:
    """Return a loader of a data set's batches; the last batch may be smaller.

    Each pass draws from ``order`` what it needs, its order and the seeds of its workers, so the
    state of ``order`` when a pass starts decides it: workers are started anew for each. Torch's
    global generator is drawn from only by what augments in this process.

    Parameters
    ----------
    dataset : Dataset
        What to load; one that returns whole batches from ``__getitems__``, such as
        :class:`steppe.compare.data.datasets.TensorSamples`, is asked for those.
    batch_size : int
        Samples a batch.
    order : torch.Generator, optional
        Shuffles anew for each pass. None goes through in sequence.
    weights : sequence of float, optional
        Draw samples in proportion to them, with replacement, instead of each once.
    workers : int, default 0
        Processes that prepare batches in advance; 0 prepares them here, when they are asked for.
    batches : sequence of sequence of int, optional
        The samples of each batch, at most ``batch_size``, instead of cutting them off ``order``.
    collate : callable, optional
        Makes a batch of a list of samples. Default: torch's.
    parts : int, default 1
        Each batch comes in at most so many parts.

    Examples
    --------
    >>> from steppe.compare.data.datasets import TensorSamples
    >>> samples = TensorSamples(torch.zeros(5, 3), torch.arange(5))
    >>> [part.batch[1].tolist() for part, in loader(samples, 2)]
    [[0, 1], [2, 3], [4]]
    """
    # Without one of its own, each pass in sequence would draw a seed from torch's generator, and
    # how often a run is evaluated would change it.
    generator = torch.Generator() if order is None else order
    chosen: dict[str, Any] = {"batch_size": batch_size}
    if batches is not None:
        chosen = {"batch_sampler": _GivenBatches(batches, batch_size)}
    elif weights is not None:
        count = size_of(dataset)
        chosen["sampler"] = WeightedRandomSampler(weights, count, generator=generator)
    elif order is not None:
        chosen["sampler"] = RandomSampler(dataset, generator=generator)  # type: ignore[arg-type]
    return DataLoader(
        dataset,
        **chosen,
        generator=generator,
        num_workers=workers,
        collate_fn=partial(_parts, collate=collate, parts=parts),
    )


def head(
    dataset: Dataset[Any], samples: int, batch_size: int, collate: Collate | None = None
) -> list[Part]:
    """Return a few samples, always the same ones, or all if there are fewer, as batches.

    They are drawn at random, as data sets may be sorted.

    Parameters
    ----------
    dataset : Dataset
        It has a length.
    samples : int
        How many.
    batch_size : int
        Samples of a batch.
    collate : callable, optional
        Makes a batch of a list of samples. Default: torch's.
    """
    count = size_of(dataset)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    chosen = Subset(dataset, order[:samples].tolist())
    return [part for (part,) in loader(chosen, batch_size, collate=collate)]


class _GivenBatches(Sampler[list[int]]):
    """Sampler of given batches; Accelerate asks for its batch size."""

    def __init__(self, batches: Sequence[Sequence[int]], batch_size: int) -> None:
        self._batches, self.batch_size = batches, batch_size

    def __iter__(self) -> Iterator[list[int]]:
        return map(list, self._batches)

    def __len__(self) -> int:
        return len(self._batches)


def _parts(samples: list[Any] | Rows, *, collate: Collate | None, parts: int) -> list[Part]:
    """Make a batch of samples, in parts."""
    if isinstance(samples, Rows) and collate is not None:
        samples = list(zip(*samples, strict=True))
    make = collate or default_collate
    count = len(samples.targets) if isinstance(samples, Rows) else len(samples)
    step = math.ceil(count / parts)
    found = []
    for begin in range(0, count, step):
        some = slice(begin, min(begin + step, count))
        if isinstance(samples, Rows):
            batch: Any = (samples.inputs[some], samples.targets[some])
        else:
            batch = make(samples[some])
        found.append(Part(batch, some.stop - begin))
    return found
