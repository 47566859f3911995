"""Gradient norms of one step, over all parameters or per parameter, summed over processes.

Dispatch makes them of the engines' sums of squares; buffers decide by them what they remember.
"""

import atexit
import math
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from steppe._engines.base.batch import ParamBatch
from steppe._engines.base.cache_chunks import cache_chunks
from steppe._engines.base.number_formats import accumulator
from steppe._engines.base.sharding import LocalShard, ShardGroup

Sum = Callable[[], Tensor]


@dataclass
class Norms:
    """The norms that the batches of one step need, and no others.

    What lies in several processes is added up by one all-reduce for each device mesh, of one
    number, and one more for each tensor that needs its own. :meth:`begin` begins it, on all
    processes alike; it is waited for when a norm is asked for.

    Attributes
    ----------
    sums
        Batches, and of each the sum of the squared gradient of each row here, and last that of all.
    has_whole
        Whether a batch needs the norm of all gradients; the sums are then those of all batches.
    """

    sums: list[tuple[ParamBatch, Tensor]]
    has_whole: bool
    _begun: dict[Any, Sum] = field(default_factory=dict)
    _rows_at: dict[int, tuple[Any, int]] = field(default_factory=dict)
    _whole: Tensor | float | None = None

    def begin(self) -> None:
        """Begin to add up what lies in several processes."""
        shared: dict[Any, list[tuple[ParamBatch, Tensor]]] = {}
        for batch, sums in self.sums:
            if batch.shard_group is not None:
                counted = _counted(sums, batch.shard_group)
                shared.setdefault(batch.shard_group.mesh, []).append((batch, counted))
        for mesh, found in shared.items():
            whole = [_unscaled(sums[-1], batch) for batch, sums in found]
            parts = [torch.stack(whole).sum(0, keepdim=True)]
            length = 1
            for batch, sums in found:
                if batch.needs_tensor_norm:
                    parts.append(sums[:-1])
                    self._rows_at[id(batch)] = mesh, length
                    length += len(sums) - 1
            self._begun[mesh] = _begin_sum(torch.cat(parts), mesh)

    def whole(self) -> Tensor | float:
        """Return the norm of all gradients: a number, where all is on the host."""
        if self._whole is None:
            squares = [
                _unscaled(sums[-1], batch) for batch, sums in self.sums if batch.shard_group is None
            ]
            squares += [finish()[0] for finish in self._begun.values()]
            self._whole = _root_of_sum(squares)
        return self._whole

    def squares(self, batch: ParamBatch) -> Tensor | None:
        """Return the sum of each row's squared gradient, not unscaled; None if all is here."""
        if id(batch) not in self._rows_at:
            return None
        mesh, begin = self._rows_at[id(batch)]
        return self._begun[mesh]()[begin : begin + len(batch.rows)]


@torch.no_grad()
def joint_norm(parts: Iterable[tuple[Tensor, ShardGroup | None]]) -> Tensor | float:
    """L2 norm of tensors together, of each this process's part and who holds the others.

    It is a number, where all is on the host.
    """
    plain: list[Tensor] = []
    shared: dict[Any, list[Tensor]] = {}
    for part, shard_group in parts:
        square = square_sum(part)
        if shard_group is None:
            plain.append(square)
        else:
            shared.setdefault(shard_group.mesh, []).append(_counted(square, shard_group))
    sums = [_begin_sum(torch.stack(squares).sum(), mesh) for mesh, squares in shared.items()]
    return _root_of_sum([*plain, *(finish() for finish in sums)])


def whole_sum(part: Tensor, shard: LocalShard) -> Tensor:
    """Sum of a tensor's elements over all its shards, accumulated in float64."""
    total, shard_group = part.sum(dtype=accumulator(part.device)), shard.shard_group
    if shard_group is None:
        return total
    return _begin_sum(_counted(total, shard_group), shard_group.mesh)().to(part.device)


def square_sum(tensor: Tensor) -> Tensor:
    """Sum of the squares of this process's elements, accumulated in float64."""
    dtype = accumulator(tensor.device)
    norms: list[Tensor] = [
        torch.linalg.vector_norm(piece, dtype=dtype) for (piece,) in cache_chunks(tensor)
    ]
    whole = norms[0] if len(norms) == 1 else torch.stack(norms)
    return whole.square().sum()


def _counted(value: Tensor, shard_group: ShardGroup) -> Tensor:
    """Return what this process adds to a sum over its group's mesh, where it is added up."""
    counted = value if shard_group.is_counted else torch.zeros_like(value)
    return counted.to(shard_group.mesh.device_type)


def _begin_sum(values: Tensor, mesh: Any) -> Sum:
    """Begin to add numbers up over all processes of a mesh; return what waits for the sums."""
    from torch import distributed

    # Everybody at once, rather than dimension by dimension. A line's own group may differ from the
    # world's, as where that talks between hosts only, and the mesh is of accelerators.
    is_world = mesh.ndim > 1 and mesh.size() == distributed.get_world_size()
    *inner, last = [None] if is_world else mesh.get_all_groups()
    for group in inner:
        distributed.all_reduce(values, group=group)
    work = distributed.all_reduce(values, group=last, async_op=True)
    _unfinished.add(work)

    def finish() -> Tensor:
        work.wait()
        _unfinished.discard(work)
        return values

    return finish


_unfinished: set[Any] = set()


@atexit.register
def _finish() -> None:
    """Stay until the others have been told: a process that exits closes its connections."""
    for work in _unfinished:
        with suppress(RuntimeError):  # they may be gone
            work.wait()


def _unscaled(square: Tensor, batch: ParamBatch) -> Tensor:
    return square if batch.unscale == 1.0 else square * batch.unscale**2


def _root_of_sum(squares: list[Tensor]) -> Tensor | float:
    # A fake tensor's number is nowhere, as one on a device is not here.
    on_device = [x for x in squares if x.device.type != "cpu" or type(x) is not Tensor]
    if not on_device:
        return math.sqrt(sum(map(float, squares)))
    if len(squares) == 1:
        return on_device[0].sqrt()
    first = on_device[0]
    return torch.stack([square.to(first) for square in squares]).sum().sqrt()
