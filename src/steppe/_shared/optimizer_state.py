"""The memory that an optimizer's state takes, in bytes in all.

``steppe bench`` reports it; studies divide it by the number of trainable parameters.
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def state_bytes(optimizer: Optimizer) -> int:
    """Return the size of all tensors in an optimizer's state, in bytes; not per parameter.

    :func:`held_tensors` says which those are.

    Examples
    --------
    >>> import torch
    >>> p = torch.ones(10, requires_grad=True)
    >>> optimizer = torch.optim.SGD([p], lr=0.1, momentum=0.9)
    >>> p.sum().backward()
    >>> optimizer.step()
    >>> state_bytes(optimizer)
    40
    """
    return sum(
        tensor.nbytes for state in optimizer.state.values() for tensor in held_tensors(state)
    )


def held_tensors(tree: Any) -> Iterator[Tensor]:
    """Yield the tensors that a state holds, as they lie in memory.

    Those in nested dictionaries, lists and tuples are among them, as LBFGS keeps its history and
    HeavyBall all state; those that a tensor of few bits is made of, as torchao's are; and those
    that are attributes of an object, as FlashOptim's are.
    """
    if isinstance(tree, Tensor):
        if is_traceable_wrapper_subclass(tree):
            names, _ = tree.__tensor_flatten__()
            yield from held_tensors([getattr(tree, name) for name in names])
        else:
            yield tree
    elif isinstance(tree, dict):
        yield from held_tensors(list(tree.values()))
    elif isinstance(tree, list | tuple):
        for branch in tree:
            yield from held_tensors(branch)
    elif hasattr(tree, "__dict__"):
        yield from (value for value in vars(tree).values() if isinstance(value, Tensor))
