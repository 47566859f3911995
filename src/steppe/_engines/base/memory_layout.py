"""How the elements of tensors lie in memory, and which lie so that a kernel can take them.

Engines object to a batch by it, and steps refuse tensors that have no memory.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import Parameter

from steppe._shared.array_types import Integers

_FORMATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def param_objection(param: Tensor) -> str | None:
    """Say why a parameter's own format or layout does not suit a kernel; None if it does."""
    if param.dtype not in _FORMATS:
        return f"parameters are {param.dtype}"
    if type(param) not in (Tensor, Parameter):
        return f"parameters are {type(param).__name__}"
    if not is_dense(param):
        return "a parameter has gaps between its elements"
    return None


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements lie without gaps or overlaps, in whatever order of dimensions."""
    if not tensor.numel():
        return True
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True


def is_alike(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape have their elements in the same order."""
    if a.stride() == b.stride() or not a.numel():
        return True
    return all(
        size == 1 or ours == theirs
        for size, ours, theirs in zip(a.shape, a.stride(), b.stride(), strict=True)
    )


def share_memory(tensors: Sequence[Tensor]) -> bool:
    """Whether some of torch's own tensors lie where others do, or in the gaps of others."""
    begins = np.array([tensor.data_ptr() for tensor in tensors], dtype=np.int64)
    sizes = [_extent(tensor) * tensor.element_size() for tensor in tensors]
    return overlap(begins, np.array(sizes, dtype=np.int64))


def _extent(tensor: Tensor) -> int:
    """Return how many elements of memory lie from a tensor's first one to its last."""
    if tensor.is_contiguous():
        return tensor.numel()
    return 1 + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))


def overlap(begins: Integers, sizes: Integers) -> bool:
    """Whether pieces of memory overlap, given the address and the bytes of each."""
    is_there = (begins != 0) & (sizes > 0)
    begins, sizes = begins[is_there], sizes[is_there]
    order = np.argsort(begins)
    ends = np.maximum.accumulate((begins + sizes)[order])
    return bool((begins[order][1:] < ends[:-1]).any())


def memory_objection(tensor: Tensor) -> str | None:
    """Say why a tensor's elements may not be read where it says that they lie; None if they may.

    Of torch's own tensors on a CPU or GPU alone; others look after theirs.
    """
    if not is_plain(tensor) or tensor.device.type not in ("cpu", "cuda") or not tensor.numel():
        return None
    if tensor.data_ptr() == 0:
        return "has no memory: its storage was freed"
    end = (tensor.storage_offset() + _extent(tensor)) * tensor.element_size()
    if end > tensor.untyped_storage().nbytes():
        return f"ends {end - tensor.untyped_storage().nbytes()} bytes behind its storage"
    return None


def write_objection(tensor: Tensor) -> str | None:
    """Say why a step may not write into a tensor; None if it may."""
    if not torch.is_inference_mode_enabled() and not _counts_versions(tensor):
        return (
            "was made under torch.inference_mode, outside of which it may not be changed; "
            "make a clone() of it outside"
        )
    if is_plain(tensor) and _meets_itself(tensor):
        return (
            f"has elements that share memory (strides {tuple(tensor.stride())}), as expand() makes "
            "them; give each its own with clone()"
        )
    return None


def _counts_versions(tensor: Tensor) -> bool:
    """Whether autograd counts a tensor's versions.

    Where ``p.data`` was set to a tensor of inference mode, ``p.is_inference()`` too, but it may be
    changed.
    """
    try:
        return tensor._version >= 0
    except RuntimeError:
        return False


def _meets_itself(tensor: Tensor) -> bool:
    """Whether some elements lie where others do."""
    if is_dense(tensor):
        return False
    dims = [d for d in sorted(zip(tensor.stride(), tensor.shape, strict=True)) if d[1] > 1]
    if dims[0][0] == 0:
        return True
    spans = np.cumsum([0, *(stride * (size - 1) for stride, size in dims)])
    if all(stride > span for (stride, _), span in zip(dims, spans, strict=False)):
        return False
    # It may be: as_strided interleaves what it likes.
    places = np.zeros(1, dtype=np.int64)
    for stride, size in dims:
        places = np.add.outer(places, stride * np.arange(size)).ravel()
    return len(np.unique(places)) < len(places)


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is torch's own: not of a subclass, and no wrapper of a transform."""
    return (
        type(tensor) in (Tensor, Parameter)
        and tensor.layout is torch.strided
        and not torch._is_functional_tensor(tensor)
        and not is_traced(tensor)
    )


def is_traced(tensor: Tensor) -> bool:
    """Whether a tensor's numbers are not to be read: a fake one, or one that torch.func wraps."""
    is_wrapped: bool = torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    return is_wrapped or isinstance(tensor, FakeTensor)
