"""Sharded tensors: which elements this process holds, and where they lie in the whole tensor.

Norms, rounding noise, 8-bit blocks and checkpoints go by it, so that a step does not depend on how
tensors are sharded.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

from steppe._shared.array_types import Integers

_PLAIN = (Tensor, Parameter)


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor, of which this process holds a part or a copy."""
    # Most are none; to look for an attribute that is missing takes ten times as long.
    return type(tensor) not in _PLAIN and hasattr(tensor, "to_local")


def is_member(tensor: Any) -> bool:
    """Whether this process is one of those that a DTensor lies on."""
    return tensor.device_mesh.get_coordinate() is not None


def real(tensor: Tensor) -> Tensor:
    """Return a complex tensor's real view, and any other tensor itself."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def local_part(tensor: Any) -> Tensor:
    """Return the part of a DTensor that this process holds; a plain tensor itself."""
    if not is_sharded(tensor):
        plain: Tensor = tensor
        return plain
    if torch.is_grad_enabled():
        with torch.no_grad():  # a step has done so, once for all of its tensors
            return local_part(tensor)
    part: Any = tensor.to_local()
    # What has just been communicated may still be under way.
    found: Tensor = part.wait() if hasattr(part, "wait") else part
    return found


class ShardGroup(NamedTuple):
    """The processes that share tensors.

    Attributes
    ----------
    mesh
        The device mesh that they form.
    cuts
        Whether tensors are cut along each of its dimensions; along the others there are copies.
    """

    mesh: Any
    cuts: tuple[bool, ...]

    @classmethod
    def of(cls, mesh: Any, placements: Iterable[Any]) -> "ShardGroup | None":
        """Return the processes that hold tensors placed so; None where each holds all."""
        cuts = tuple(not placement.is_replicate() for placement in placements)
        return cls(mesh, cuts) if any(cuts) else None

    @property
    def is_counted(self) -> bool:
        """Whether this process's part counts: of copies, the first one's does."""
        coordinate = self.mesh.get_coordinate()
        return all(cut or index == 0 for cut, index in zip(self.cuts, coordinate, strict=True))


class ShardChunks(NamedTuple):
    """A tensor's elements here, cut where multiples of a length lie in the whole's memory.

    Attributes
    ----------
    first, size
        Where each piece begins in this process's memory, and its number of elements.
    whole_first
        Where it begins in the whole's.
    block
        How many of the blocks, cut likewise, come before it in this process.
    """

    first: Integers
    size: Integers
    whole_first: Integers
    block: Integers


@dataclass(frozen=True)
class LocalShard:
    """The part of a tensor that this process holds; of a plain one, all of it.

    The elements are real numbers: two for each of a complex tensor's.

    Attributes
    ----------
    shape, stride
        Of the whole tensor.
    offsets, sizes
        Where the part begins in it, and the part's shape.
    mesh, placements
        The device mesh and how the tensor lies on it; None and nothing for a plain one.
    """

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    mesh: Any = None
    placements: tuple[Any, ...] = ()

    @property
    def numel(self) -> int:
        """Number of elements of the whole tensor."""
        return math.prod(self.shape)

    @property
    def shard_group(self) -> ShardGroup | None:
        """The processes that hold the other parts; None where this one holds all."""
        return ShardGroup.of(self.mesh, self.placements)

    @cached_property
    def order(self) -> list[int]:
        """The dimensions, the one with the largest steps in memory first."""
        return sorted(range(len(self.shape)), key=lambda i: -self.stride[i])

    @cached_property
    def runs(self) -> tuple[Integers, int]:
        """Where runs of elements begin that lie side by side both here and in the whole.

        Returns
        -------
        starts, length
            Their places in the whole's memory, in the order of this process's, and the number of
            elements that they all have.
        """
        inner = len(self.order)
        while inner and self.sizes[self.order[inner - 1]] == self.shape[self.order[inner - 1]]:
            inner -= 1
        outer = self.order[: max(inner - 1, 0)]
        starts = np.zeros(1, dtype=np.int64)
        for dim in outer:
            starts = np.add.outer(starts, np.arange(self.sizes[dim]) * self.stride[dim]).ravel()
        begin = sum(at * step for at, step in zip(self.offsets, self.stride, strict=True))
        whole = math.prod(self.sizes[dim] for dim in self.order[len(outer) :])
        return starts + begin, whole

    def cut(self, length: int, block: int) -> ShardChunks:
        """Cut the elements at multiples of ``length``, itself a multiple of ``block``."""
        starts, size = self.runs
        if not size:
            starts = starts[:0]
        firsts, counts = blocks_touched(starts, size, length)
        run, nth = numbered(counts)
        nth_cut = firsts[run] + nth
        whole_first = np.maximum(nth_cut * length, starts[run])
        end = np.minimum((nth_cut + 1) * length, starts[run] + size)
        first_blocks, blocks = blocks_touched(starts, size, block)
        before = np.cumsum(blocks) - blocks
        return ShardChunks(
            first=run * size + whole_first - starts[run],
            size=end - whole_first,
            whole_first=whole_first,
            block=before[run] + whole_first // block - first_blocks[run],
        )

    def blocks(self, block: int) -> int:
        """Return into how many blocks the elements are cut at multiples of ``block``."""
        starts, size = self.runs
        return int(blocks_touched(starts, size, block)[1].sum()) if size else 0

    def like(self, part: Tensor) -> Tensor:
        """Return this process's part as the DTensor that it is one of, or itself if it is whole."""
        if self.mesh is None:
            return part
        return sharded(part, self.mesh, self.placements, self.shape, self.stride)


def sharded(
    part: Tensor,
    mesh: Any,
    placements: tuple[Any, ...],
    shape: tuple[int, ...],
    stride: tuple[int, ...],
) -> Tensor:
    """Return the DTensor of which this process holds a part."""
    from torch.distributed.tensor import DTensor

    whole: Tensor = DTensor.from_local(
        part, mesh, placements, run_check=False, shape=torch.Size(shape), stride=stride
    )
    return whole


def agreed_number(number: int, tensors: Iterable[Any]) -> int:
    """Return a whole number that all processes of the first DTensor's mesh have: the largest.

    Without DTensors it is the number itself.
    """
    mesh = next((tensor.device_mesh for tensor in tensors if is_sharded(tensor)), None)
    if mesh is None:
        return number
    from torch import distributed

    held = torch.tensor([number], device=mesh.device_type)
    for group in mesh.get_all_groups():
        distributed.all_reduce(held, distributed.ReduceOp.MAX, group=group)
    return int(held)


def shard_group_of(tensor: Any) -> ShardGroup | None:
    """Return the processes that hold the other parts of a tensor; None where this one holds all."""
    return ShardGroup.of(tensor.device_mesh, tensor.placements) if is_sharded(tensor) else None


def local_shard_of(tensor: Any) -> LocalShard:
    """Return which part of a tensor this process holds; of a complex one, of its real view."""
    if not is_sharded(tensor):
        plain = real(tensor)
        shape = tuple(plain.shape)
        return LocalShard(shape, tuple(plain.stride()), (0,) * len(shape), shape)
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    mesh, placements = tensor.device_mesh, tuple(tensor.placements)
    sizes, offsets = compute_local_shape_and_global_offset(tensor.shape, mesh, placements)
    # Parts are often contiguous where the whole is not: then so is the whole that they make up.
    is_plain = local_part(tensor).is_contiguous()
    like = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    whole = real(like if is_plain else like.as_strided(tensor.shape, tensor.stride()))
    pair = len(whole.shape) - len(sizes)
    return LocalShard(
        shape=tuple(whole.shape),
        stride=tuple(whole.stride()),
        offsets=(*offsets, *[0] * pair),
        sizes=(*sizes, *[2] * pair),
        mesh=mesh,
        placements=placements,
    )


def numbered(counts: Integers) -> tuple[Integers, Integers]:
    """Return for each piece the index of its owner, and its number among the owner's pieces.

    Owner i has ``counts[i]`` pieces; both arrays have the shape (sum of counts,).
    """
    owner = np.repeat(np.arange(len(counts)), counts)
    return owner, np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)


def blocks_touched(starts: Integers, size: int, length: int) -> tuple[Integers, Integers]:
    """Return the first multiple of ``length`` at or before each run, and how many it touches."""
    first = starts // length
    return first, (starts + size - 1) // length - first + 1
