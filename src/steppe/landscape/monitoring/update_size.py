"""The size of an optimizer's step against that of the weights, ‖Δw‖₂/‖w‖₂."""

from collections.abc import Sequence

import torch
from torch import Tensor

# Elements that are copied before a step that is measured: of larger models a sample.
MOST_COPIED = 1 << 22


@torch.no_grad()
def sampled_weights(params: Sequence[Tensor]) -> list[Tensor]:
    """Copy each parameter as a vector: all of its elements, or of large models each n-th."""
    size = sum(param.numel() for param in params)
    stride = max(1, -(-size // MOST_COPIED))
    return [param.detach().reshape(-1)[::stride].clone() for param in params]


@torch.no_grad()
def relative_update(params: Sequence[Tensor], before: Sequence[Tensor]) -> float:
    """Return ‖w − w′‖₂/‖w′‖₂ over all parameters, from samples of w′ before a step.

    Where samples leave elements out, each parameter counts in proportion to its elements. Norms are
    summed in float64.

    Examples
    --------
    >>> weight = torch.tensor([3.0, 4.0])
    >>> before = sampled_weights([weight])
    >>> _ = weight.add_(torch.tensor([0.0, 0.5]))
    >>> relative_update([weight], before)
    0.1
    """
    moved = size = 0.0
    for param, old, new in zip(params, before, sampled_weights(params), strict=True):
        each = param.numel() / max(len(old), 1)
        moved += each * float((new.double() - old.double()).square().sum())
        size += each * float(old.double().square().sum())
    return float("nan") if size == 0 else (moved / size) ** 0.5
