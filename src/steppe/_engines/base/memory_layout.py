"""How the elements of tensors lie in memory, and which lie so that a kernel can take them."""

import torch
from torch import Tensor
from torch.nn import Parameter

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
