"""How the elements of tensors lie in memory."""

from torch import Tensor


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements lie without gaps or overlaps, in whatever order of dimensions."""
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
    return a.stride() == b.stride() or all(
        size == 1 or ours == theirs
        for size, ours, theirs in zip(a.shape, a.stride(), b.stride(), strict=True)
    )
