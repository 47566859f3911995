"""Tell in one compiled pass whether tensors are all of the usual kind.

SAM asks it of its parameters and of what they move along. Where they are usual, none has to be
looked at by itself, which takes 30 µs for each.
"""

from collections.abc import Sequence
from operator import attrgetter

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

from steppe._engines.base.memory_layout import overlap
from steppe._engines.base.tensor_facts import LAYOUT, Fact, have_memory
from steppe._engines.cpu import tensor_reader
from steppe._shared.array_types import Integers

_USUAL = {Tensor, Parameter}
_FORMATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}

_device, _dtype = attrgetter("device"), attrgetter("dtype")
_version = attrgetter("_version")


def are_usual(written: Sequence[Tensor], read: Sequence[Tensor]) -> bool:
    """Whether tensors may be written, and others beside them read, without a closer look.

    All are torch's own, contiguous, real, on one CPU or NVIDIA GPU, and have memory; those that are
    written can be, and share none of it. Each that is read is laid out as the one that is written,
    if there are any.
    """
    tensors = [*written, *read]
    if not (
        tensors
        and set(map(type, tensors)) <= _USUAL
        and set(map(_dtype, tensors)) <= _FORMATS
        and len(devices := set(map(_device, tensors))) == 1
        and devices.pop().type in ("cpu", "cuda")
        and not any(map(Tensor.is_neg, tensors))
        and not any(map(torch._C._functorch.is_functorch_wrapped_tensor, tensors))
        and not any(map(torch._is_functional_tensor, tensors))
    ):
        return False
    try:
        [*map(_version, written)]
    except RuntimeError:  # Made in inference mode.
        return False
    facts = tensor_reader.read(tensors, max(map(Tensor.dim, tensors)))
    own, others = facts[: len(written)], facts[len(written) :]
    items = np.array([dtype.itemsize for dtype in map(_dtype, tensors)], dtype=np.int64)
    sizes, strides = np.split(facts[:, Fact.SIZES :], 2, axis=1)
    spans = _filled(facts, sizes).prod(1) * items
    return bool(
        (not len(others) or np.array_equal(own[:, LAYOUT:], others[:, LAYOUT:]))
        and (facts[:, Fact.DIM] >= 0).all()
        and _are_contiguous(_filled(facts, sizes), strides)
        and have_memory(facts, spans, items)
        and not overlap(own[:, Fact.ADDRESS], spans[: len(written)])
    )


def _filled(facts: Integers, sizes: Integers) -> Integers:
    """Return sizes with 1 in the place of dimensions that a tensor does not have."""
    dims = np.arange(sizes.shape[1])
    filled: Integers = np.where(dims < facts[:, Fact.DIM, None], sizes, 1)
    return filled


def _are_contiguous(sizes: Integers, strides: Integers) -> bool:
    """Whether all elements lie in the order of dimensions; strides of one element are 0."""
    inner = np.ones_like(sizes)
    inner[:, :-1] = np.cumprod(sizes[:, :0:-1], axis=1)[:, ::-1]
    return bool(((strides == inner) | (sizes <= 1)).all())
