"""Regroup batches into groups of a given number of samples, as m-sharpness needs them.

:mod:`steppe.landscape.surfaces.sharpness` measures the loss's rise in each group.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence, unpack_sequence

from steppe.landscape.objective.batches import (
    Batch,
    is_of_samples,
    map_leaves,
    tensors_of,
    unknown_size,
    without_labels,
)


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
        _check_inputs(batch)
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


def _check_inputs(batch: Batch) -> None:
    """Refuse inputs of which none can be cut by samples."""
    inputs = {"inputs": batch.inputs, "keywords": without_labels(batch.keywords)}
    tensors = [*tensors_of(inputs)]
    parts = tensors_of(cut(inputs, batch.size, 0, 1))
    if batch.size > 1 and tensors and [*map(id, parts)] == [*map(id, tensors)]:
        shapes = ", ".join(str(tuple(each.shape)) for each in tensors)
        raise ValueError(
            f"batch {batch.position} has {batch.size} samples, and no input whose first dimension "
            f"is as long, as where time comes first (they have shapes {shapes}): samples cannot be "
            "taken out of it; put them first, and let the model transpose"
        )


def part_of(batch: Batch, begin: int, end: int) -> Batch:
    """Return samples ``begin`` to ``end`` of a batch, as a batch."""
    # Arguments that have each all samples are cut one by one: of two samples and two arguments the
    # arguments would be taken for the samples.
    apart = all(_has_samples(each, batch.size) for each in batch.inputs)
    inputs = dict(enumerate(batch.inputs)) if apart else batch.inputs
    # Together, so that what is an input and a target too stays one.
    parts = cut(
        {"inputs": inputs, "keywords": batch.keywords, "targets": batch.targets},
        batch.size, begin, end,
    )  # fmt: skip
    if apart:
        parts["inputs"] = tuple(parts["inputs"].values())
    return batch._replace(**parts, size=end - begin)


def _has_samples(value: Any, size: int) -> bool:
    if isinstance(value, Tensor | np.ndarray):
        return value.ndim > 0 and len(value) == size
    return is_of_samples(value, size)


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
        if isinstance(value, np.ndarray) and value.ndim and len(value) == size:
            return value[begin:end]
        return value[begin:end] if is_list(value) else value

    return map_leaves(value, part, is_list)


def joined_batches(one: Batch, other: Batch) -> Batch:
    """Return the samples of two batches as one batch.

    Raises
    ------
    ValueError
        They cannot be joined: their samples differ in shape, or in what all of a batch share.

    Examples
    --------
    >>> import torch
    >>> pair = Batch(0, (torch.ones(2, 3),), {}, torch.ones(2), 2)
    >>> joined_batches(pair, pair).inputs[0].shape
    torch.Size([4, 3])
    """
    joined: dict[tuple[int, int], Any] = {}

    def both(left: Any, right: Any) -> Any:
        # By their identities: what is an input and a target too stays one.
        key = id(left), id(right)
        if key not in joined:
            joined[key] = _joined(left, right, (one.size, other.size), both)
        return joined[key]

    parts = (both(getattr(one, n), getattr(other, n)) for n in ("inputs", "keywords", "targets"))
    inputs, keywords, targets = parts
    return one._replace(
        inputs=inputs, keywords=keywords, targets=targets, size=one.size + other.size
    )


def _joined(left: Any, right: Any, sizes: tuple[int, int], both: Callable[[Any, Any], Any]) -> Any:
    if type(left) is not type(right):
        raise ValueError(f"{type(left).__name__} and {type(right).__name__} cannot be joined")
    if isinstance(left, Tensor):
        if left.ndim and (len(left), len(right)) == sizes and left.shape[1:] == right.shape[1:]:
            needs_gradient = left.requires_grad and left.is_leaf
            together = torch.cat([left.detach(), right.detach()])
            return together.requires_grad_(needs_gradient)
        if left.shape == right.shape and torch.equal(left, right):
            return left
    elif isinstance(left, np.ndarray):
        if left.ndim and (len(left), len(right)) == sizes and left.shape[1:] == right.shape[1:]:
            return np.concatenate([left, right])
    elif isinstance(left, Mapping) and left.keys() == right.keys():
        return {name: both(left[name], right[name]) for name in left}
    elif type(left) in (tuple, list):
        if is_of_samples(left, sizes[0]) and is_of_samples(right, sizes[1]):
            return left + right
        if len(left) == len(right):
            return type(left)(both(*pair) for pair in zip(left, right, strict=True))
    elif left is right or (isinstance(left, int | float | str | None) and left == right):
        return left
    raise ValueError("what all samples of a batch share differs, or their shapes do")
