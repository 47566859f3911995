"""Copies of models whose weights are changed, for plain passes beside what is tested."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn


def changed_copy(model: nn.Module, change: Callable[[Tensor], Tensor]) -> nn.Module:
    """Change all weights of two or more dimensions of a copy."""
    copied = copy.deepcopy(model).eval()
    with torch.no_grad():
        for param in copied.parameters():
            if param.ndim >= 2:
                param.copy_(change(param))
    return copied
