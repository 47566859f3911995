"""Batches of a data set, in an order that a generator decides."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, Subset, default_collate


def loader(
    dataset: Dataset[Any],
    batch_size: int,
    *,
    order: torch.Generator | None = None,
    workers: int = 0,
    batches: Sequence[Sequence[int]] | None = None,
) -> DataLoader[Any]:
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
    workers : int, default 0
        Processes that prepare batches in advance; 0 prepares them here, when they are asked for.
    batches : sequence of sequence of int, optional
        The samples of each batch, at most ``batch_size``, instead of cutting them off ``order``.

    Examples
    --------
    >>> from steppe.compare.data.datasets import TensorSamples
    >>> samples = TensorSamples(torch.zeros(5, 3), torch.arange(5))
    >>> [targets.tolist() for _, targets in loader(samples, 2)]
    [[0, 1], [2, 3], [4]]
    """
    chosen: dict[str, Any] = {"batch_size": batch_size, "shuffle": order is not None}
    return DataLoader(
        dataset,
        **(chosen if batches is None else {"batch_sampler": _GivenBatches(batches, batch_size)}),
        # Without one of its own, each pass in sequence would draw a seed from torch's generator,
        # and how often a run is evaluated would change it.
        generator=torch.Generator() if order is None else order,
        num_workers=workers,
        collate_fn=_collate,
    )


def head(dataset: Dataset[Any], samples: int, batch_size: int) -> list[tuple[Tensor, Tensor]]:
    """Return the first samples, or all if there are fewer, as a list of batches.

    Parameters
    ----------
    dataset : Dataset
        It has a length.
    samples : int
        How many.
    batch_size : int
        Samples of a batch.

    Returns
    -------
    list of (Tensor, Tensor)
        Inputs and targets.
    """
    count = min(samples, len(dataset))  # type: ignore[arg-type]  # not every Dataset has a length
    return [
        (inputs, targets) for inputs, targets in loader(Subset(dataset, range(count)), batch_size)
    ]


class _GivenBatches(Sampler[list[int]]):
    """Sampler of given batches; Accelerate asks for its batch size."""

    def __init__(self, batches: Sequence[Sequence[int]], batch_size: int) -> None:
        self._batches, self.batch_size = batches, batch_size

    def __iter__(self) -> Iterator[list[int]]:
        return map(list, self._batches)

    def __len__(self) -> int:
        return len(self._batches)


def _collate(batch: Any) -> Any:
    """Stack samples, unless ``__getitems__`` has returned a whole batch."""
    return batch if isinstance(batch, tuple) else default_collate(batch)
