"""Read a user's batches: how to call the model on each, what to compare with, and its size."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

#: ``(inputs, targets)`` pairs, or mappings of keyword arguments.
Batches = Iterable[Any]


class Batch(NamedTuple):
    """One batch on the model's device: ``model(*inputs, **keywords)``, and the loss's targets."""

    position: int
    inputs: tuple[Any, ...]
    keywords: Mapping[str, Any]
    targets: Any
    size: int


def read_batch(position: int, batch: Any, device: torch.device) -> Batch:
    """Move a batch to a device and find out how the model is called on it.

    Parameters
    ----------
    position : int
        Position of the batch in the data, for error messages and for dropout's seed.
    batch : tuple, list, mapping or Batch
        ``(inputs, targets)``; or a mapping, which then is the targets as well; or a batch that has
        been read already.
    device : torch.device
        Tensors are moved there, inside tuples, lists and mappings too.

    Raises
    ------
    ValueError
        It is neither a pair nor a mapping, or has no tensor that tells the number of samples.

    Examples
    --------
    >>> batch = read_batch(0, (torch.ones(3, 2), torch.zeros(3)), torch.device("cpu"))
    >>> len(batch.inputs), batch.size
    (1, 3)
    """
    if isinstance(batch, Batch):
        return batch
    if isinstance(batch, Mapping):
        keywords = {name: _moved(value, device) for name, value in batch.items()}
        return Batch(position, (), keywords, keywords, _size(position, list(keywords.values())))
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise ValueError(
            f"batch {position} is {type(batch).__name__}, expected (inputs, targets) or a mapping"
        )
    inputs, targets = (_moved(part, device) for part in batch)
    size = _size(position, [targets, inputs])
    if isinstance(inputs, Mapping):
        return Batch(position, (), inputs, targets, size)
    positional = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
    return Batch(position, positional, {}, targets, size)


def check_data(data: Any) -> None:
    """Refuse data that cannot be iterated over again and again.

    Raises
    ------
    ValueError
        The data is an iterator, or is not iterable.
    """
    if isinstance(data, Iterator):
        raise ValueError(
            "data is an iterator, which can be gone through only once: pass a list or a DataLoader"
        )
    # A Dataset has no __iter__: Python would go through its samples as if they were batches.
    if not isinstance(data, Iterable):
        raise ValueError(
            f"data is a {type(data).__name__}, expected batches: pass a list or a DataLoader"
        )


def shuffle_generators(data: Any) -> list[torch.Generator]:
    """Return a DataLoader's own random generators; without one it uses torch's global state."""
    owners = data, getattr(data, "sampler", None)
    generators = (getattr(owner, "generator", None) for owner in owners)
    return [generator for generator in generators if isinstance(generator, torch.Generator)]


def _moved(value: Any, device: torch.device) -> Any:
    """Move tensors to a device, inside tuples, lists and mappings too."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {name: _moved(part, device) for name, part in value.items()}
    if isinstance(value, tuple | list):
        return [_moved(part, device) for part in value]
    return value


def _size(position: int, values: list[Any]) -> int:
    """Return how many samples a batch has: the first dimension of its first tensor."""
    first = next((part for part in _tensors(values) if part.ndim), None)
    if first is None:
        raise ValueError(
            f"batch {position} has no tensor whose first dimension could be its samples"
        )
    return len(first)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping | list):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(part)
