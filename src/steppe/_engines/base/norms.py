"""Norms over all shards: of a step's gradients, of all of them or of single ones."""

import atexit
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, Protocol

import torch
from torch import Tensor

from steppe._engines.base.cache_chunks import pieces
from steppe._engines.base.method import Method
from steppe._engines.base.plan import Group, ParamBatch
from steppe._engines.base.scalars import groups, precise
from steppe._engines.base.sharding import ShardGroup, Share

Sum = Callable[[], Tensor]


class Counts(Protocol):
    """What an engine offers for norms."""

    def square_sums(self, batch: ParamBatch) -> Tensor:
        """Return the sum of the squared gradient of each row here, and last that of all."""


def needs_whole(batch: ParamBatch) -> bool:
    """Whether a row of the batch goes by the norm of all gradients."""
    return any(goes_by_whole(batch.method, group) for group in groups(batch)[0])


def needs_own(batch: ParamBatch) -> bool:
    """Whether a row of the batch goes by the norm of its own gradient."""
    return any(goes_by_own(batch.method, group) for group in groups(batch)[0])


def goes_by_whole(method: Method, group: Group) -> bool:
    """Whether the parameters of a group go by the norm of all gradients."""
    return _has_buffer(method, group) and group["scope"] == "global"


def goes_by_own(method: Method, group: Group) -> bool:
    """Whether each parameter of a group goes by the norm of its own gradient."""
    is_scoped = _has_buffer(method, group) and group["scope"] == "tensor"
    return method.mean_square is not None or is_scoped


def _has_buffer(method: Method, group: Group) -> bool:
    return method.buffer is not None and group["capacity"] > 0


class Norms:
    """The norms that the batches of one step need, and no others.

    What lies in several processes is added up by one all-reduce for each device mesh, of one
    number, and one more for each tensor that needs its own. It is waited for when it is asked for.
    It is begun at once, on all processes alike.

    Parameters
    ----------
    pairs
        The batches of a step, and the engine of each.
    """

    def __init__(self, pairs: Sequence[tuple[Counts, ParamBatch]]) -> None:
        self.has_whole = any(needs_whole(batch) for _, batch in pairs)
        self._plain: list[Tensor] = []
        self._sums: dict[Any, Sum] = {}
        self._places: dict[int, tuple[Any, int]] = {}
        self._whole: Tensor | float | None = None
        shared: dict[Any, list[tuple[Tensor, ParamBatch]]] = {}
        for engine, batch in pairs:
            if batch.team is None:
                if self.has_whole:
                    self._plain.append(_unscaled(engine.square_sums(batch)[-1], batch))
            elif self.has_whole or needs_own(batch):
                shared.setdefault(batch.team.mesh, []).append((engine.square_sums(batch), batch))
        for mesh, found in shared.items():
            self._begin(mesh, found)

    def _begin(self, mesh: Any, found: list[tuple[Tensor, ParamBatch]]) -> None:
        counted = [
            (_counted(sums, batch.team), batch) for sums, batch in found if batch.team is not None
        ]
        whole = [_unscaled(sums[-1], batch) for sums, batch in counted]
        parts = [torch.stack(whole).sum(0, keepdim=True)]
        begin = 1
        for sums, batch in counted:
            if needs_own(batch):
                parts.append(sums[:-1])
                self._places[id(batch)] = mesh, begin
                begin += len(sums) - 1
        self._sums[mesh] = _begin_sum(torch.cat(parts), mesh)

    def whole(self) -> Tensor | float:
        """Return the norm of all gradients: a number, where all is on the host."""
        if self._whole is None:
            squares = [*self._plain, *(finish()[0] for finish in self._sums.values())]
            self._whole = _root_of_sum(squares)
        return self._whole

    def squares(self, batch: ParamBatch) -> Tensor | None:
        """Return the sum of each row's squared gradient, not unscaled; None if all is here."""
        if id(batch) not in self._places:
            return None
        mesh, begin = self._places[id(batch)]
        return self._sums[mesh]()[begin : begin + len(batch.rows)]


@torch.no_grad()
def joint_norm(parts: Iterable[tuple[Tensor, ShardGroup | None]]) -> Tensor | float:
    """L2 norm of tensors together, of each this process's part and who holds the others.

    It is a number, where all is on the host.
    """
    plain: list[Tensor] = []
    shared: dict[Any, list[Tensor]] = {}
    for part, team in parts:
        square = square_sum(part)
        if team is None:
            plain.append(square)
        else:
            shared.setdefault(team.mesh, []).append(_counted(square, team))
    sums = [_begin_sum(torch.stack(squares).sum(), mesh) for mesh, squares in shared.items()]
    return _root_of_sum([*plain, *(finish() for finish in sums)])


@torch.no_grad()
def whole_sum(part: Tensor, share: Share) -> Tensor:
    """Sum of a tensor's elements over all its shards, accumulated in float64."""
    total, team = part.sum(dtype=precise(part.device)), share.team
    if team is None:
        return total
    return _begin_sum(_counted(total, team), team.mesh)().to(part.device)


def square_sum(tensor: Tensor) -> Tensor:
    """Sum of the squares of this process's elements, accumulated in float64."""
    dtype = precise(tensor.device)
    norms: list[Tensor] = [
        torch.linalg.vector_norm(piece, dtype=dtype) for (piece,) in pieces(tensor)
    ]
    whole = norms[0] if len(norms) == 1 else torch.stack(norms)
    return whole.square().sum()


def _counted(value: Tensor, team: ShardGroup) -> Tensor:
    """Return what this process adds to a sum over its team's mesh, and where it is added up."""
    counted = value if team.speaks else torch.zeros_like(value)
    return counted.to(team.mesh.device_type)


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
    on_device = [square for square in squares if square.device.type != "cpu"]
    if not on_device:
        return math.sqrt(sum(map(float, squares)))
    if len(squares) == 1:
        return on_device[0].sqrt()
    first = on_device[0]
    return torch.stack([square.to(first) for square in squares]).sum().sqrt()
