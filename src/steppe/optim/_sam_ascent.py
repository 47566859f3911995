"""SAM's way up: compute the perturbation e over all parameters, and move each parameter by it.

:class:`~steppe.optim.SAM` calls it between its two passes; ``_sam_restore.py`` undoes it.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from steppe import rules
from steppe._engines import (
    Group,
    ShardGroup,
    cache_chunks,
    joint_norm,
    local_param_and_grad,
    shard_group_of,
    widened,
)
from steppe.optim._sam_passes import Moves

#: A parameter, its gradient and its group's options.
Member = tuple[Tensor, Tensor, Group]


def ascend(members: Iterable[Member], save: Callable[[Tensor], None]) -> Moves:
    """Move every parameter from p to p + e, after ``save`` has been called with it.

    The norm is that over all parameters, and over all shards of sharded ones. Where it is zero or
    not finite no parameter moves.

    Returns
    -------
    For each parameter the L2 norm of its part of e here, on its device, and the processes with the
    other parts; empty if the norm is a number here, and not finite.
    """
    ascents = [
        (param, _Ascent(*local_param_and_grad(param, grad), shard_group_of(param), group))
        for param, grad, group in members
    ]
    norm = joint_norm((ascent.scaled_grad, ascent.shard_group) for _, ascent in ascents) + 1e-12
    if isinstance(norm, float) and not math.isfinite(norm):
        return []
    moves: Moves = []
    for param, ascent in ascents:
        save(param)
        moves.append((ascent.move(norm), ascent.shard_group))
    return moves


def rho_name(options: dict[str, Any]) -> str:
    """Name of ρ among the options: ``torch.optim.Adadelta`` has a rho of its own."""
    return "sam_rho" if "sam_rho" in options else "rho"


class _Ascent(NamedTuple):
    """Part of a parameter and its gradient in this process, and the processes with the rest."""

    param: Tensor
    grad: Tensor
    shard_group: ShardGroup | None
    group: Group

    @property
    def scaled_grad(self) -> Tensor:
        """The tensor whose norm is taken: g, for adaptive SAM |p|·g."""
        if not self.group["adaptive"]:
            return self.grad
        scaled: Tensor = rules.asam_length(widened(self.param), widened(self.grad))
        return scaled

    def move(self, norm: Tensor | float) -> Tensor:
        """Add e to the parameter, given the norm of all scaled gradients; return the norm of e."""
        # A group that maximises its objective minimises minus the objective.
        sign = -1 if self.group.get("maximize") else 1
        scale = self.group[rho_name(self.group)] / norm * sign
        lengths = []
        for p, g in cache_chunks(self.param, self.grad):
            start, direction = widened(p), widened(g)
            if self.group["adaptive"]:
                direction = rules.asam_direction(start, direction)
            lengths.append(torch.linalg.vector_norm(direction))
            p.copy_(_where_finite(scale, start, direction))
        length = torch.linalg.vector_norm(torch.stack(lengths))
        length *= scale if isinstance(scale, float) else scale.to(length.device)
        # What a norm that is not finite has not moved counts as zero.
        return torch.nan_to_num(length, nan=0.0, posinf=0.0, neginf=0.0)


def _where_finite(scale: Tensor | float, start: Tensor, direction: Tensor) -> Tensor:
    if isinstance(scale, float):
        moved: Tensor = rules.sam_ascent(start, direction, scale)
        return moved
    # Reading the norm back from an accelerator would wait for it, so the device itself decides.
    scale = scale.to(start.device)
    moved = rules.sam_ascent(start, direction, scale.to(start.dtype))
    return torch.where(scale.isfinite() & (scale != 0), moved, start)
