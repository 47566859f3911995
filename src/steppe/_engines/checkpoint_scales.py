"""The scales of 8-bit state in checkpoints, where they do not depend on how tensors are sharded.

In memory a process has one scale for each block of its part of a tensor. In a checkpoint every
line of the tensor, a slice along its outermost dimension, has a scale for each block that it
touches: so lines can be given to other processes, and their codes mean what they meant. Blocks are
those of the whole tensor. One that two processes have shared has two scales; where they come
together, its numbers are rounded anew, to nearest.

Lines that are themselves cut, as columns are in tensor parallelism, have such scales where the cuts
are multiples of a block, and otherwise for each of their parts: those cannot be given to another
number of processes.

Blocks follow the memory, and codes are saved by their indices. So that nobody takes the scales of a
tensor that lies otherwise, as in channels_last, for its own, those have one more dimension, of size
one.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from steppe._engines.base import number_formats
from steppe._engines.base.bind import bind
from steppe._engines.base.number_formats import BLOCK, format_of, scale_name
from steppe._engines.base.sharding import (
    LocalShard,
    blocks_touched,
    is_sharded,
    local_part,
    local_shard_of,
    sharded,
)
from steppe._engines.eager import bit_ops
from steppe._engines.eager.codecs import encoded, from_memory_order, in_blocks, in_memory_order
from steppe._shared.array_types import Integers

#: Noise of half a step rounds to nearest.
_HALF = 0x80000000


@dataclass(frozen=True)
class ScaleLayout:
    """How the scales of a tensor lie in a checkpoint.

    Attributes
    ----------
    shard
        Which part of the tensor this process holds.
    parts
        Into how many parts at most a process's share of a line is cut.
    line_shards
        How many processes share a line.
    width
        How many scales each part of a line has.
    by_lines
        Whether the parts of a line need not be told apart.
    in_order
        Whether the tensor's elements lie in the order of its indices.
    """

    shard: LocalShard
    parts: int
    line_shards: int
    width: int
    by_lines: bool
    in_order: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole tensor's scales."""
        lines = self.shard.shape[self.shard.order[0]]
        if self.by_lines:
            return lines, self.width * self.line_shards, *self._mark
        return lines, self.parts * self.line_shards, self.width, *self._mark

    @property
    def _mark(self) -> tuple[int, ...]:
        return () if self.in_order else (1,)

    def whole(self, scales: Tensor) -> Tensor:
        """Return a process's scales as they are in a checkpoint; of a shard, a DTensor."""
        index, _ = self._index()
        held = self._padded(scales[index.to(scales.device)])
        held = held.view(*held.shape, *self._mark)
        if self.shard.mesh is None:
            return held
        placements = tuple(self._placement(each) for each in self.shard.placements)
        stride = tuple(math.prod(self.shape[i + 1 :]) for i in range(len(self.shape)))
        return sharded(held, self.shard.mesh, placements, self.shape, stride)

    def part(self, kind: str, codes: Tensor, whole: Tensor) -> tuple[Tensor, Tensor]:
        """Return this process's codes and scales, of those of a checkpoint.

        Parameters
        ----------
        kind
            "signed8" or "square8".
        codes
            What this process holds of the codes.
        whole
            The scales, as :meth:`whole` returned them somewhere.
        """
        index, is_real = (each.to(codes.device) for each in self._index())
        held = self._parted(local_part(whole), len(index))
        count = self.shard.blocks(BLOCK)
        ends = [held.new_full((count,), end) for end in (torch.inf, -torch.inf)]
        least, most = (
            end.scatter_reduce(0, index[is_real], held[is_real], how)
            for end, how in zip(ends, ("amin", "amax"), strict=True)
        )
        if torch.equal(least, most):
            return codes, most
        decode = bind(getattr(number_formats, f"from_{kind}"), bit_ops)
        positions, blocks, scale = self._of_elements(held, codes)
        numbers = decode(in_memory_order(codes).long(), scale)
        padded = in_blocks(numbers, positions, count)
        half = torch.full((), _HALF, dtype=torch.int64, device=codes.device)
        fresh, scales = encoded(kind, padded, half)
        joined = least != most
        changed = from_memory_order(fresh.view(-1)[positions], codes)
        is_joined = from_memory_order(joined[blocks], codes)
        return torch.where(is_joined, changed, codes), torch.where(joined, scales, most)

    def _segments(self) -> tuple[Integers, int, Integers]:
        """Return where lines, or parts of them, begin in the whole; their length; first blocks."""
        shard = self.shard
        starts, length = shard.runs
        if any(self._cuts_line(placement) for placement in shard.placements):
            counts = blocks_touched(starts, length, BLOCK)[1]
            return starts, length, np.cumsum(counts) - counts
        lines = shard.sizes[shard.order[0]]
        length = length // lines if lines else 0
        starts = starts[0] + np.arange(lines) * length
        return starts, length, starts // BLOCK - starts[:1] // BLOCK

    def _index(self) -> tuple[Tensor, Tensor]:
        """Return which of this process's scales stand where, and whether there is such a block."""
        starts, length, first = self._segments()
        counts = blocks_touched(starts, length, BLOCK)[1]
        nth = np.arange(self.width)
        index = first[:, None] + np.minimum(nth, counts[:, None] - 1)
        return torch.from_numpy(index), torch.from_numpy(nth < counts[:, None])

    def _of_elements(self, held: Tensor, codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return each element's place in rows of blocks, its block, and its scale."""
        starts, length, first = self._segments()
        place = starts[:, None] + np.arange(length)
        nth = place // BLOCK - starts[:, None] // BLOCK
        block = first[:, None] + nth
        positions, blocks, nths = (
            torch.from_numpy(each).to(codes.device)
            for each in (block * BLOCK + place % BLOCK, block, nth)
        )
        return positions.view(-1), blocks.view(-1), held.gather(1, nths).view(-1)

    def _padded(self, held: Tensor) -> Tensor:
        """Give a process's scales the shape of a checkpoint's."""
        if self.by_lines:
            return held
        lines = self.shard.sizes[self.shard.order[0]]
        parts = held.view(lines, len(held) // max(lines, 1), self.width)
        return pad(parts, (0, 0, 0, self.parts - parts.shape[1]))

    def _parted(self, held: Tensor, count: int) -> Tensor:
        """Invert :meth:`_padded`."""
        if self.by_lines:
            return held.reshape(count, self.width)
        lines = max(self.shard.sizes[self.shard.order[0]], 1)
        return held[:, : count // lines].reshape(count, self.width)

    def _cuts_line(self, placement: Any) -> bool:
        return not placement.is_replicate() and placement.dim != self.shard.order[0]

    def _placement(self, placement: Any) -> Any:
        from torch.distributed.tensor import Shard

        if placement.is_replicate():
            return placement
        if self._cuts_line(placement):
            return Shard(1)
        return placement if placement.dim == 0 else Shard(0)


def scale_layout(shard: LocalShard) -> ScaleLayout:
    """Return how the scales of a tensor lie in a checkpoint."""
    outermost, *inner = shard.order
    most, line_shards, is_even = list(shard.shape), 1, True
    for i, placement in enumerate(shard.placements):
        if placement.is_replicate():
            continue
        ranks, dim = shard.mesh.size(i), placement.dim
        if dim != outermost:
            line_shards *= ranks
            is_even &= most[dim] % ranks == 0
        most[dim] = -(-most[dim] // ranks)
    cut = [k for k, dim in enumerate(inner) if most[dim] < shard.shape[dim]]
    before, within = (inner[: cut[-1]], inner[cut[-1] :]) if cut else ([], inner)
    parts, length = math.prod(most[dim] for dim in before), math.prod(most[dim] for dim in within)
    # As many blocks as a length can touch, which begins at some multiple of itself, or anywhere.
    step = math.gcd(length, BLOCK) if is_even else 1
    width = (BLOCK - step + length - 1) // BLOCK + 1
    is_aligned = is_even and length % BLOCK == 0
    by_lines = line_shards == 1 or (parts == 1 and is_aligned)
    long = [dim for dim in shard.order if shard.shape[dim] > 1]
    return ScaleLayout(shard, parts, line_shards, width, by_lines, long == sorted(long))


def scale_layout_of(codes: Tensor, param: Tensor) -> ScaleLayout:
    """Return how the scales of codes lie in a checkpoint, of a parameter or a shard of one."""
    # Loaded codes lie as they were saved, and parameters may be laid out anew.
    return scale_layout(local_shard_of(param if is_sharded(param) else codes))


def unpack_scales(state: dict[str, Any], param: Tensor) -> None:
    """Put the scales of this process's blocks in the place of a checkpoint's."""
    for name in eight_bit_names(state):
        scales, codes = state[scale_name(name)], local_part(state[name])
        if is_packed(scales):
            found, state[scale_name(name)] = scale_layout_of(state[name], param).part(
                format_of(name, codes), codes, scales
            )
            codes.copy_(found)


def pack_scales(state: dict[str, Any], param: Tensor) -> dict[str, Any]:
    """Return a state whose scales are as they are in a checkpoint."""
    packed = {
        scale_name(name): scale_layout_of(state[name], param).whole(state[scale_name(name)])
        for name in eight_bit_names(state)
        if not is_packed(state[scale_name(name)])
    }
    return state | packed if packed else state


def eight_bit_names(state: dict[str, Any]) -> list[str]:
    """Return which tensors of a state have 8 bits, and scales."""
    # Who resets a moment to zeros of another format leaves its scales behind.
    return [
        name
        for name, value in state.items()
        if isinstance(value, Tensor) and value.dtype == torch.uint8 and scale_name(name) in state
    ]


def is_packed(scales: Tensor) -> bool:
    """Whether scales are a checkpoint's, by lines; in memory they are in one row."""
    return scales.dim() > 1
