"""The perturbations e of SAM's family: what they go along, in which metric, and how far.

:class:`~steppe.optim.SAM` moves the parameters to p + e by them; ``_sam_restore.py`` undoes it.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from steppe import rules
from steppe._engines import (
    Group,
    LocalShard,
    ShardGroup,
    cache_chunks,
    joint_norm,
    local_param_and_grad,
    local_shard_of,
    shard_group_of,
    standard_normal,
    whole_sum,
    widened,
)
from steppe.optim._sam_passes import Moves

#: Where ρ is not given, by direction and metric.
DEFAULT_RHO = {
    ("gradient", "euclidean"): 0.05,
    ("gradient", "adaptive"): 0.5,
    ("gradient", "preconditioned"): 0.005,
    # Of some six values each, those of low test loss around AdamW, for an MLP on digits.
    ("momentum", "euclidean"): 0.2,
    ("momentum", "adaptive"): 1.0,
    ("momentum", "preconditioned"): 0.02,
    ("random", "euclidean"): 0.1,
    ("random", "adaptive"): 0.1,
}


class Member(NamedTuple):
    """A parameter that moves.

    Attributes
    ----------
    param, group
        The parameter, and its group's options.
    along
        What e goes along: the gradient or the base's momentum; None at random.
    sign
        Of e along it.
    preconditioner
        What the base multiplies momenta by; None where the metric has no use for it, or the base
        none yet.

    The tensors beside the parameter are this process's parts of them, as real numbers.
    """

    param: Tensor
    group: Group
    along: Tensor | None = None
    sign: int = 1
    preconditioner: Tensor | None = None


def rho_name(options: dict[str, Any]) -> str:
    """Name of ρ among the options: ``torch.optim.Adadelta`` has a rho of its own."""
    return "sam_rho" if "sam_rho" in options else "rho"


def perturb_along(members: Iterable[Member], save: Callable[[Tensor], None]) -> Moves:
    """Move every parameter to p + ρ·s²d/‖s·d‖, after ``save`` has been called with it.

    d is the member's ``along``, times its sign. s is 1; of ``adaptive`` groups |p|; of
    ``preconditioned`` ones the root of the preconditioner. The norm is that over all parameters,
    and over all shards of sharded ones. Where it is zero or not finite no parameter moves.

    Returns
    -------
    For each parameter the L2 norm of its part of e here, on its device, and the processes with the
    other parts; empty if the norm is a number here, and not finite.
    """
    parts = [(member.param, _Part.of(member)) for member in members]
    norm = joint_norm((part.length, part.shard_group) for _, part in parts) + 1e-12
    if isinstance(norm, float) and not math.isfinite(norm):
        return []
    moves: Moves = []
    for param, part in parts:
        save(param)
        moves.append((part.move(norm), part.shard_group))
    return moves


def perturb_randomly(
    members: Iterable[Member], save: Callable[[Tensor], None], seed: int, step: int
) -> Moves:
    """Move every parameter to p + ρ·std(p)·ξ, of ``adaptive`` groups p + ρ·p·ξ, ξ normal.

    std is that of the whole tensor's elements, all shards of it, 0 for a single one. ξ is that of
    the seed, the parameter's number and the step, and of nothing else.
    """
    moves: Moves = []
    for number, member in enumerate(members):
        p = _local(member.param)
        shard, start = local_shard_of(member.param), widened(p)
        save(member.param)
        drawn = standard_normal(start, shard, seed, number, step).to(start.dtype)
        size = start if member.group["metric"] == "adaptive" else _deviation(start, shard)
        direction = drawn * size
        rho = member.group[rho_name(member.group)]
        p.copy_(rules.sam_perturbed(start, direction, rho))
        moves.append((torch.linalg.vector_norm(direction) * rho, shard.shard_group))
    return moves


def _local(param: Tensor) -> Tensor:
    return local_param_and_grad(param, param)[0]


def _deviation(start: Tensor, shard: LocalShard) -> Tensor:
    """Return the standard deviation of all elements of a tensor."""
    mean = whole_sum(start, shard) / max(shard.numel, 1)
    squares = whole_sum((start - mean.to(start.dtype)).square(), shard)
    return (squares / max(shard.numel, 1)).sqrt().to(start.dtype)


@dataclass
class _Part:
    """What this process holds of a parameter, of d and of the metric, as real numbers."""

    param: Tensor
    along: Tensor
    root: Tensor | None
    is_adaptive: bool
    rho: float
    shard_group: ShardGroup | None

    @classmethod
    def of(cls, member: Member) -> "_Part":
        group, root = member.group, None
        if member.preconditioner is not None:
            root = widened(member.preconditioner).sqrt()
        assert member.along is not None
        return cls(
            _local(member.param),
            member.along,
            root,
            group["metric"] == "adaptive",
            group[rho_name(group)] * member.sign,
            shard_group_of(member.param),
        )

    @property
    def length(self) -> Tensor:
        """The tensor s·d whose norm is taken."""
        s = self.param if self.is_adaptive else self.root
        if s is None:
            return self.along
        scaled: Tensor = rules.metric_length(widened(s), widened(self.along))
        return scaled

    def move(self, norm: Tensor | float) -> Tensor:
        """Add e to the parameter, given the norm of all lengths; return the norm of e."""
        scale = self.rho / norm
        tensors = [self.param, self.along, *([] if self.root is None else [self.root])]
        lengths = []
        for p, d, *root in cache_chunks(*tensors):
            start, direction = widened(p), widened(d)
            if self.is_adaptive or root:
                direction = rules.metric_direction(root[0] if root else start, direction)
            lengths.append(torch.linalg.vector_norm(direction))
            p.copy_(_where_finite(scale, start, direction))
        length = torch.linalg.vector_norm(torch.stack(lengths))
        length *= abs(scale) if isinstance(scale, float) else scale.abs().to(length.device)
        # What a norm that is not finite has not moved counts as zero.
        return torch.nan_to_num(length, nan=0.0, posinf=0.0, neginf=0.0)


def _where_finite(scale: Tensor | float, start: Tensor, direction: Tensor) -> Tensor:
    if isinstance(scale, float):
        moved: Tensor = rules.sam_perturbed(start, direction, scale)
        return moved
    # Reading the norm back from an accelerator would wait for it, so the device itself decides.
    scale = scale.to(start.device)
    moved = rules.sam_perturbed(start, direction, scale.to(start.dtype))
    return torch.where(scale.isfinite() & (scale != 0), moved, start)
