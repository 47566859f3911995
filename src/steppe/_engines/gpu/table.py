"""What the Triton kernels are told: where tensors lie, and what changes from step to step."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from steppe._engines.base.batch import ParamBatch, nothing
from steppe._engines.base.method import BIRTHS, KEYS, MEAN, REPLACEMENTS, SLOT_SUM, slot_name
from steppe._engines.base.number_formats import BLOCK, EIGHT_BITS, PARAM_ERROR, scale_name
from steppe._engines.base.param_row import Group, State
from steppe._engines.base.scalars import gradient_factor
from steppe._engines.base.sharding import numbered
from steppe._engines.gpu.scalar_program import options
from steppe._shared.array_types import Array, Floats, Integers, Integers32

#: Elements that a program of the update, and of the reduction, takes.
CHUNK = 4096
SPAN = 32_768


# A CUDA graph may read again at any time what it was captured with.
_captured: list[Any] = []


class RowColumn(IntEnum):
    """What a row of the table begins with.

    Addresses of the parameter-shaped state follow in the rule's order, each with that of its
    scales; then likewise those of the slots. What a row does not have lies at 0.
    """

    INDEX = 0
    NUMEL = 1
    WHOLE_NUMEL = 2
    GROUP = 3
    FIRST_SPAN = 4
    PROGRAMS = 5
    CAPACITY = 6
    KEYS = 7
    BIRTHS = 8
    REPLACEMENTS = 9
    SUM = 10
    MEAN = 11
    PARAM = 12
    ERROR = 13
    STATE = 14


class ChunkColumn(IntEnum):
    """What a program of the update takes.

    It starts ``LOWER`` elements before the first one, with a block of the whole tensor, and ends
    before its ``UPPER``. That block's index is ``WHOLE_BLOCK`` in the whole tensor, and ``BLOCK``
    in this process.
    """

    ROW = 0
    START = 1
    LOWER = 2
    UPPER = 3
    WHOLE_BLOCK = 4
    BLOCK = 5


class OptionColumn(IntEnum):
    """What a group's options begin with; those that the method's scalars read follow."""

    SIGN = 0
    OWN = 1
    DECAY = 2
    OPTIONS = 3


@dataclass
class GpuTable:
    """A batch as the kernels read it.

    Attributes
    ----------
    addresses
        Of all tensors but the gradients, as they were read.
    captured
        Whether it is filled when a CUDA graph is replayed, not before.
    rows
        The addresses on the device, as :class:`RowColumn` says.
    aligned
        Whether all of them are multiples of 16.
    chunks, spans
        What each program of the update takes, as :class:`ChunkColumn` says; row and place of what
        each program of the reduction takes.
    partials, sums
        Results of the reduction: each program's; each row's, then that of all.
    arrivals
        How many programs of each row, and how many rows, have come; 0 between launches.
    constants
        What the update is compiled for.
    sent, copy
        What the host sent last, and the same on the device.
    """

    addresses: list[list[int]]
    captured: bool
    rows: Tensor
    aligned: bool
    chunks: Tensor
    spans: Tensor
    partials: Tensor
    sums: Tensor
    arrivals: Tensor
    constants: dict[str, Any] = field(default_factory=dict)
    sent: Integers | None = None
    copy: Tensor = field(default_factory=nothing)

    def holds(self, found: list[list[int]]) -> bool:
        """Whether it is as good as new for tensors that lie there."""
        return self.addresses == found and (capturing() or not self.captured)


class Sent(NamedTuple):
    """What changes from step to step.

    Attributes
    ----------
    lines
        The address of each row's gradient; its step count in float64, or where that lies.
    counted_here
        Whether step counts lie on the device.
    options
        Each group's, as :class:`OptionColumn` says.
    aligned
        Whether all addresses are multiples of 16.
    """

    lines: Tensor
    counted_here: bool
    options: Tensor
    aligned: bool


def capturing() -> bool:
    """Whether launches are recorded for a CUDA graph, rather than done."""
    started: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return started and torch.cuda.is_current_stream_capturing()


def upload(array: Array, device: torch.device) -> Tensor:
    """Copy an array to the device, without waiting for it."""
    host = torch.from_numpy(array)
    if device.type == "cpu":
        return host
    pinned = host.pin_memory()
    copy = pinned.to(device, non_blocking=True)
    if capturing():
        _captured.extend((pinned, copy))
    return copy


def amp(batch: ParamBatch) -> tuple[Tensor | None, Tensor | None]:
    """Return a GradScaler's scale, and whether it found infinities, on the batch's device."""
    scale, found_inf = batch.amp or (None, None)
    return on(scale, batch.device), on(found_inf, batch.device)


def on(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    """Return a tensor, if there is one, on the device."""
    return None if tensor is None else tensor.to(device, non_blocking=True)


# Where tensors lie


def addresses(batch: ParamBatch) -> list[list[int]]:
    """Return the addresses of all tensors but the gradients, from ``Column.KEYS`` on.

    A complex tensor lies where its real view does. This is most of a step over many small tensors.
    """
    states = [row.parts for row in batch.rows]
    nothing = [0] * len(states)
    has_scales = not EIGHT_BITS.isdisjoint(batch.formats)
    names = [*batch.method.state]
    columns = [nothing] * 5
    if batch.method.buffer is not None or batch.method.mean_square is not None:
        names += map(slot_name, range(max(row.capacity for row in batch.rows)))
        books = (KEYS, BIRTHS, REPLACEMENTS, SLOT_SUM, MEAN)
        columns = [_column(states, name) for name in books]
    columns.append([row.param.data_ptr() for row in batch.rows])
    columns.append(_column(states, PARAM_ERROR) if batch.rows[0].keeps_error else nothing)
    for name in names:
        columns.append(_column(states, name))
        columns.append(_column(states, scale_name(name)) if has_scales else nothing)
    return columns


def _column(states: Sequence[State], name: str) -> list[int]:
    return [state[name].data_ptr() if name in state else 0 for state in states]


def new_table(batch: ParamBatch, found: list[list[int]]) -> GpuTable:
    """Lay out a batch whose tensors lie at the ``found`` addresses."""
    rows, device = batch.rows, batch.device
    sizes = np.array([row.param.numel() for row in rows], dtype=np.int64)
    spans, chunks = _spans(sizes), _chunks(batch)
    facts = [
        [row.index for row in rows],
        sizes,
        [row.shard.numel for row in rows],
        batch.group_of_row,
        np.searchsorted(spans[:, 0], np.arange(len(rows))),
        np.bincount(chunks[:, ChunkColumn.ROW], minlength=len(rows)),
        [row.capacity for row in rows],
    ]
    columns = np.array([*facts, *found], dtype=np.int64)
    return GpuTable(
        addresses=found,
        captured=capturing(),
        rows=upload(np.ascontiguousarray(columns.T), device),
        aligned=_is_aligned(columns[len(facts) :]) and _is_aligned(chunks[:, ChunkColumn.START]),
        chunks=upload(chunks, device),
        spans=upload(spans, device),
        partials=torch.empty(len(spans), dtype=torch.float64, device=device),
        # Zeros: where kernels are only compiled, they are read before anything is written.
        sums=torch.zeros(len(rows) + 1, dtype=torch.float64, device=device),
        arrivals=torch.zeros(len(rows) + 1, dtype=torch.int32, device=device),
    )


def _chunks(batch: ParamBatch) -> Integers:
    """Return what the programs of the update take, as :class:`ChunkColumn` says."""
    chunks = batch.chunks(CHUNK)
    # An empty tensor has one too: it decides as others do.
    empty = np.setdiff1d(np.arange(len(batch.rows)), chunks[:, 0])
    chunks = np.concatenate([chunks, np.stack([empty, *[np.zeros_like(empty)] * 4], axis=1)])
    row, first, size, whole_first, block = chunks.T
    lower = whole_first % BLOCK
    return np.stack([row, first - lower, lower, lower + size, whole_first // BLOCK, block], axis=1)


def _spans(sizes: Integers) -> Integers32:
    """Return row and place of what the programs of the reduction take, one of an empty tensor."""
    counts = np.maximum(-(-sizes // SPAN), 1)
    return np.stack(numbered(counts), axis=1).astype(np.int32)


def _is_aligned(found: Integers) -> bool:
    return not np.bitwise_or.reduce(found, axis=None) & 15


# What changes


def send(batch: ParamBatch, table: GpuTable) -> Sent:
    """Bring to the device what has changed since it was sent last."""
    counted_here = _is_counted_on_device(batch)
    lines = np.zeros((len(batch.rows), 2), dtype=np.int64)
    lines[:, 0] = batch.grad_addresses
    if counted_here:
        lines[:, 1] = [row.state["step"].data_ptr() for row in batch.rows]
    else:
        lines[:, 1] = batch.steps.double().numpy().view(np.int64)
    values, tensors = _options(batch)
    host = np.concatenate([lines.ravel(), values.view(np.int64).ravel()])
    if capturing():
        _captured.append(table)
        table.sent = None
    if table.sent is None or not np.array_equal(host, table.sent):
        table.copy = upload(host, batch.device)
        table.sent = None if capturing() else host
    sent_options = table.copy[lines.size :].view(torch.float64).view(values.shape)
    for (group, place), value in tensors.items():
        sent_options[group, place].copy_(value.reshape(()))
    aligned = table.aligned and _is_aligned(lines[:, 0])
    return Sent(table.copy[: lines.size], counted_here, sent_options, aligned)


def _options(batch: ParamBatch) -> tuple[Floats, dict[tuple[int, int], Tensor]]:
    """Return the groups' options, and by their places those that are tensors on the device."""
    found = [[*_leading(batch, group), *options(batch.method, group)] for group in batch.groups]
    tensors = {
        (i, j): value
        for i, line in enumerate(found)
        for j, value in enumerate(line)
        if isinstance(value, Tensor) and value.device == batch.device
    }
    for i, j in tensors:
        found[i][j] = 0.0
    return np.array([list(map(float, line)) for line in found]), tensors


def _leading(batch: ParamBatch, group: Group) -> tuple[float, float, float]:
    sign = gradient_factor(batch, group)
    if batch.method.buffer is None:
        return sign, 0.0, 0.0
    return sign, group["scope"] == "tensor", group["priority_decay"]


def _is_counted_on_device(batch: ParamBatch) -> bool:
    """Whether the device counts: under CUDA graphs, and from when a GradScaler may skip steps."""
    if batch.request.capturable:
        return True
    if batch.amp is not None and batch.steps.device != batch.device:
        batch.steps = upload(batch.steps.numpy(), batch.device)
        for row, step in zip(batch.rows, batch.steps.unbind(), strict=True):
            row.state["step"] = step
    return batch.amp is not None or batch.steps.device.type != "cpu"
