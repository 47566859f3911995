"""Regroup batches into groups of a given number of samples, as m-sharpness needs them."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

from steppe.landscape.objective.batches import Batch


def sample_groups(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Yield groups of ``size`` samples, in their order, as lists of batches and parts of batches.

    The last group may be smaller. Parts are views: nothing is copied, and inputs of different
    lengths need no common padding, as they would if a group were one tensor.

    Examples
    --------
    >>> import torch
    >>> pairs = [Batch(0, (torch.ones(3, 2),), {}, torch.ones(3), 3)] * 2
    >>> [[part.size for part in group] for group in sample_groups(pairs, 4)]
    [[3, 1], [2]]
    """
    held: list[Batch] = []
    missing = size
    for batch in batches:
        begin = 0
        while begin < batch.size:
            end = min(begin + missing, batch.size)
            held.append(_part(batch, begin, end))
            missing -= end - begin
            begin = end
            if missing == 0:
                yield held
                held, missing = [], size
    if held:
        yield held


def _part(batch: Batch, begin: int, end: int) -> Batch:
    def cut(value: Any) -> Any:
        if isinstance(value, Tensor):
            # A tensor without a dimension of samples, such as a shared mask, goes to every part.
            per_sample = value.ndim and len(value) == batch.size
            return value[begin:end] if per_sample else value
        if isinstance(value, Mapping):
            return {name: cut(part) for name, part in value.items()}
        if isinstance(value, tuple | list):
            return type(value)(cut(part) for part in value)
        return value

    inputs, keywords, targets = cut(batch.inputs), cut(batch.keywords), cut(batch.targets)
    return Batch(batch.position, inputs, keywords, targets, end - begin)
