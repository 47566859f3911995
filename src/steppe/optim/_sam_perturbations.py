"""The perturbations e of SAM's family: what they go along, in which metric, and how far.

:class:`~steppe.optim.SAM` moves the parameters to p + e by them; ``_sam_restore.py`` undoes it.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from steppe import rules
from steppe._engines import (
    LocalShard,
    accumulator,
    cache_chunks,
    joint_norm,
    local_shard_of,
    standard_normal,
    whole_sum,
    widened,
)
from steppe.optim._sam_batches import Kind, Member, Members, cut, flat, side_by_side, write
from steppe.optim._sam_passes import Moves

# Copies parameters, given beside what this process holds of them; returns the elements.
_Save = Callable[[list[Tensor], list[Tensor]], Tensor]

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


def rho_name(options: dict[str, Any]) -> str:
    """Name of ρ among the options: ``torch.optim.Adadelta`` has a rho of its own."""
    return "sam_rho" if "sam_rho" in options else "rho"


def perturb_along(members: Members, save: _Save) -> Moves:
    """Move every parameter to p + ρ·s²d/‖s·d‖, after ``save`` has been called with it.

    d is the member's ``along``, times its sign. s is 1; of ``adaptive`` groups |p|; of
    ``preconditioned`` ones the root of the preconditioner. The norm is that over all parameters,
    and over all shards of sharded ones. Where it is zero or not finite no parameter moves.

    Returns
    -------
    For each batch of parameters the L2 norm of its part of e here, on its device, and the processes
    with the other parts; empty if the norm is a number here, and not finite.
    """
    groups = [(group, _batches(group)) for group in side_by_side(members)]
    lengths = {id(batch): batch.length() for _, batches in groups for batch in batches}
    norm = 1e-12 + joint_norm(
        (lengths[id(batch)], batch.kind.shard_group) for _, batches in groups for batch in batches
    )
    if isinstance(norm, float) and not math.isfinite(norm):
        return []
    moves: Moves = []
    for group, batches in groups:
        sizes = [batch.numel for batch in batches]
        starts = torch.split_with_sizes(_saved(group, save), sizes)
        for batch, start in zip(batches, starts, strict=True):
            moves.append((batch.move(start, norm, lengths[id(batch)]), batch.kind.shard_group))
    return moves


def perturb_randomly(members: Members, save: _Save, seed: int, step: int) -> Moves:
    """Move every parameter to p + ρ·std(p)·ξ, of ``adaptive`` groups p + ρ·p·ξ, ξ normal.

    std is that of the whole tensor's elements, all shards of it, 0 for a single one. ξ is that of
    the seed, the parameter's number and the step, and of nothing else.
    """
    moves: Moves = []
    for group in side_by_side(members):
        batches = cut(group)
        sizes = [sum(member.part.numel() for member in batch) for batch in batches]
        starts = torch.split_with_sizes(_saved(group, save), sizes)
        for batch, saved in zip(batches, starts, strict=True):
            start, kind = widened(saved), batch[0].kind
            shards = [local_shard_of(member.param) for member in batch]
            parts, numbers = [x.part for x in batch], [x.number for x in batch]
            drawn = standard_normal(parts, shards, seed, numbers, step).to(start.dtype)
            size = start if kind.is_adaptive else _deviations(parts, shards)
            direction = drawn * size
            write(rules.sam_perturbed(start, direction, kind.rho).to(saved.dtype), parts)
            moves.append((torch.linalg.vector_norm(direction) * kind.rho, kind.shard_group))
    return moves


def _saved(group: list[Member], save: _Save) -> Tensor:
    return save([member.param for member in group], [member.part for member in group])


def _deviations(parts: list[Tensor], shards: list[LocalShard]) -> Tensor:
    """Return for each element the standard deviation of all elements of its tensor."""
    starts = [*map(widened, parts)]
    dtype, device = starts[0].dtype, starts[0].device
    counts = torch.tensor([max(shard.numel, 1) for shard in shards], device=device)

    def means(tensors: list[Tensor]) -> Tensor:
        return torch.stack([*map(whole_sum, tensors, shards)]) / counts

    centred = torch._foreach_sub(starts, [*means(starts).to(dtype).unbind()])
    squares = means([*torch._foreach_mul(centred, centred)])
    sizes = torch.tensor([part.numel() for part in parts], device=device)
    return squares.sqrt().to(dtype).repeat_interleave(sizes)


class _Batch(NamedTuple):
    """Parts of parameters that move together, or a piece of one, as if they were one tensor.

    Attributes
    ----------
    parts, along, roots
        Of the parameters, of d, and of the preconditioner's root or none, as real numbers.
    kind
        The members'.
    """

    parts: list[Tensor]
    along: list[Tensor]
    roots: list[Tensor]
    kind: Kind

    @property
    def numel(self) -> int:
        """Number of elements."""
        return sum(part.numel() for part in self.parts)

    def length(self) -> Tensor:
        """Return the norm of s·d."""
        along = flat(self.along)
        if self.kind.is_adaptive:
            along = rules.metric_length(widened(flat(self.parts)), widened(along))
        elif self.kind.is_conditioned:
            along = rules.metric_length(flat(self.roots), widened(along))
        length: Tensor = torch.linalg.vector_norm(along, dtype=accumulator(along.device))
        return length

    def move(self, saved: Tensor, norm: Tensor | float, length: Tensor) -> Tensor:
        """Add e to the parameters, given their copy and the norm of all; return the norm of e."""
        scale, start, direction = self.kind.rho / norm, widened(saved), widened(flat(self.along))
        if self.kind.is_adaptive or self.kind.is_conditioned:
            s = start if self.kind.is_adaptive else flat(self.roots)
            direction = rules.metric_direction(s, direction)
            length = torch.linalg.vector_norm(direction)
        if isinstance(scale, float):
            length = length * abs(scale)
            self._move_by(scale, start, direction)
        else:
            length = length * scale.abs().to(length.device)
            write(_where_finite(scale, start, direction).to(saved.dtype), self.parts)
        # What a norm that is not finite has not moved counts as zero.
        return torch.nan_to_num(length, nan=0.0, posinf=0.0, neginf=0.0)

    def _move_by(self, scale: float, start: Tensor, direction: Tensor) -> None:
        part = self.parts[0]
        if len(self.parts) == 1 and part.is_contiguous():
            rules.sam_perturbed(start, _Scaled(direction, part.view(-1)), scale)
            return
        moved: Tensor = rules.sam_perturbed(start, _Scaled(direction), scale)
        write(moved.to(part.dtype), self.parts)


class _Scaled:
    """A direction that is multiplied by a number and added to a tensor in one pass.

    Two passes and a third one that writes take twice as long.
    """

    def __init__(self, direction: Tensor, out: Tensor | None = None, scale: float = 1.0) -> None:
        self._direction, self._out, self._scale = direction, out, scale

    def __mul__(self, scale: float) -> "_Scaled":
        return _Scaled(self._direction, self._out, self._scale * scale)

    def __radd__(self, start: Tensor) -> Tensor:
        return torch.add(start, self._direction, alpha=self._scale, out=self._out)


def _batches(group: list[Member]) -> list[_Batch]:
    found = []
    for members in cut(group):
        kind = members[0].kind
        parts = [member.part for member in members]
        along = [member.along for member in members if member.along is not None]
        diagonals = [x.preconditioner for x in members if x.preconditioner is not None]
        roots = [widened(diagonal).sqrt() for diagonal in diagonals]
        if len(members) > 1:
            found.append(_Batch(parts, along, roots, kind))
            continue
        for part, d, *root in cache_chunks(*parts, *along, *roots):
            found.append(_Batch([part], [d], root, kind))
    return found


def _where_finite(scale: Tensor, start: Tensor, direction: Tensor) -> Tensor:
    """Return p + e, or p where the scale is not finite or zero.

    Reading the norm back from an accelerator would wait for it, so the device itself decides.
    """
    scale = scale.to(start.device)
    moved = rules.sam_perturbed(start, direction, scale.to(start.dtype))
    return torch.where(scale.isfinite() & (scale != 0), moved, start)
