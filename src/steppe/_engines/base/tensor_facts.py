"""What a kernel relies on of a tensor: where its elements lie, how they are laid out, and how far.

A pruned, turned or moved tensor may lie at the address that another one had, and memory that was
freed is given out again. So each step reads these facts of every tensor anew, and compares them
with those that have been checked.
"""

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

from steppe._shared.array_types import Flags, Integers


class Fact(IntEnum):
    """The columns of a line of facts; sizes follow, then strides, ``dims`` of each."""

    #: Where the first element lies.
    ADDRESS = 0
    #: Bytes of the storage, and the number of elements before the first one.
    STORAGE = 1
    OFFSET = 2
    #: Number format, kind of device and number of dimensions, as torch numbers them.
    DTYPE = 3
    DEVICE = 4
    DIM = 5
    SIZES = 6


#: The columns from here on are a tensor's layout: it stays the same where a tensor only moves.
LAYOUT = Fact.DTYPE

#: Written as ``DIM`` of a tensor that has no address.
NO_MEMORY = -1

# c10::ScalarType and c10::DeviceType; others are all one, which no kernel takes.
_DTYPES = {
    torch.uint8: 0,
    torch.int8: 1,
    torch.float16: 5,
    torch.float32: 6,
    torch.float64: 7,
    torch.complex64: 9,
    torch.complex128: 10,
    torch.bfloat16: 15,
}
_DEVICES = {"cpu": 0, "cuda": 1, "xpu": 12, "mps": 13, "meta": 14}
_OTHER = 255


def read(tensors: Sequence[Tensor], dims: int) -> Integers:
    """Read the facts of tensors of at most ``dims`` dimensions, in Python.

    Strides of dimensions with one element or none say nothing, and are 0.

    Returns
    -------
    array
        A line for each tensor, in :class:`Fact`'s columns. Of more than ``dims`` dimensions the
        first ones are there.
    """
    lines = [_line(tensor, dims) for tensor in tensors]
    return np.array(lines, dtype=np.int64).reshape(len(tensors), Fact.SIZES + 2 * dims)


def _line(tensor: Tensor, dims: int) -> list[int]:
    if tensor.layout is not torch.strided:
        return [*[0] * Fact.DIM, NO_MEMORY, *[0] * 2 * dims]
    sizes = list(tensor.shape)
    strides = [s if n > 1 else 0 for n, s in zip(sizes, tensor.stride(), strict=True)]
    padding = [0] * (dims - len(sizes))
    return [
        tensor.data_ptr(),
        tensor.untyped_storage().nbytes(),
        int(tensor.storage_offset()),
        _DTYPES.get(tensor.dtype, _OTHER),
        _DEVICES.get(tensor.device.type, _OTHER),
        len(sizes),
        *(sizes + padding)[:dims],
        *(strides + padding)[:dims],
    ]


def span(tensors: Sequence[Tensor], facts: Integers, items: Integers) -> Integers:
    """Return how many bytes lie from each tensor's first element to its last; 0 without elements.

    ``items`` are the bytes of an element of each.
    """
    sizes, strides = np.split(facts[:, Fact.SIZES :], 2, axis=1)
    last = (np.maximum(sizes - 1, 0) * strides).sum(1)
    is_empty = np.array([tensor.numel() == 0 for tensor in tensors], dtype=bool)
    return np.where(is_empty, 0, (last + 1) * items)


def have_memory(facts: Integers, spans: Integers, items: Integers) -> bool:
    """Whether every storage is long enough for what its tensor spans.

    Parameters
    ----------
    facts
        Of the tensors.
    spans, items
        How many bytes each spans, and one element takes.
    """
    room = facts[:, Fact.STORAGE] - facts[:, Fact.OFFSET] * items
    is_there = (facts[:, Fact.ADDRESS] != 0) & (room >= spans)
    return bool((is_there | (spans == 0)).all())


def meet(occupied: tuple[Integers, Integers], facts: Integers, spans: Integers) -> Flags:
    """Return which tensors have bytes in common with others.

    Parameters
    ----------
    occupied
        Of the others, addresses in order; and the furthest end of those up to each, then 0.
    facts, spans
        Of the tensors, and how many bytes each spans.
    """
    begins, ends = occupied
    addresses = facts[:, Fact.ADDRESS]
    last = begins.searchsorted(addresses + spans) - 1
    # Of a tensor before all others, at -1, it is the last end, the 0.
    return (spans > 0) & (ends[last] > addresses)
