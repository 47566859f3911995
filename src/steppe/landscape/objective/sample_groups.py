"""Regroup batches into groups of a given number of samples, as m-sharpness needs them.

:mod:`steppe.landscape.surfaces.sharpness` measures the loss's rise in each group.
"""

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence, unpack_sequence

from steppe.landscape.objective.batches import Batch, is_of_samples, map_leaves, unknown_size


def sample_groups(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Yield groups of ``size`` samples, in their order, as lists of batches and parts of batches.

    The last group may be smaller. Parts are views: nothing is copied, and inputs of different
    lengths need no common padding, as they would if a group were one tensor.

    Raises
    ------
    ValueError
        It cannot be told how many samples a batch has.

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
        if batch.size_from == "first":
            raise ValueError(unknown_size(batch))
        begin = 0
        while begin < batch.size:
            end = min(begin + missing, batch.size)
            held.append(part_of(batch, begin, end))
            missing -= end - begin
            begin = end
            if missing == 0:
                yield held
                held, missing = [], size
    if held:
        yield held


def part_of(batch: Batch, begin: int, end: int) -> Batch:
    """Return samples ``begin`` to ``end`` of a batch, as a batch."""
    parts = {"inputs": batch.inputs, "keywords": batch.keywords, "targets": batch.targets}
    return batch._replace(**cut(parts, batch.size, begin, end), size=end - begin)


def cut(value: Any, size: int, begin: int, end: int) -> Any:
    """Cut what has ``size`` samples in nested containers: tensors, and lists of samples.

    A tensor without a dimension of samples, such as a shared mask, goes to every part; one that
    stands in several places stays one.
    """

    @cache
    def rows(tensor: Tensor) -> Tensor:
        return tensor[begin:end] if tensor.ndim and len(tensor) == size else tensor

    def is_list(value: Any) -> bool:
        return isinstance(value, PackedSequence) or is_of_samples(value, size)

    def part(value: Any) -> Any:
        if isinstance(value, PackedSequence):
            # By samples, not by rows of its data, which stand in the order of time.
            return pack_sequence(unpack_sequence(value)[begin:end], enforce_sorted=False)
        if isinstance(value, Tensor):
            return rows(value)
        return value[begin:end] if is_list(value) else value

    return map_leaves(value, part, is_list)
