"""The memory that an optimizer's state takes, in bytes in all.

``steppe bench`` reports it; studies divide it by the number of trainable parameters.
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.optim import Optimizer


def state_bytes(optimizer: Optimizer) -> int:
    """Return the size of all tensors in an optimizer's state, in bytes; not per parameter.

    Tensors in nested dictionaries, lists and tuples count too: LBFGS keeps its history so.

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
    return sum(tensor.nbytes for state in optimizer.state.values() for tensor in _tensors(state))


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict):
        for branch in tree.values():
            yield from _tensors(branch)
    elif isinstance(tree, list | tuple):
        for branch in tree:
            yield from _tensors(branch)
