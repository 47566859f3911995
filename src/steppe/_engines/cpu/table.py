"""What the CPU kernels are told: where the tensors of a batch lie, and how they are cut."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from steppe._engines.base.memory_layout import is_alike, param_objection
from steppe._engines.base.method import SLOT_SUM, slot_name
from steppe._engines.base.number_formats import BLOCK, EIGHT_BITS, format_of, scale_name, wide_dtype
from steppe._engines.base.plan import ParamBatch, ParamRow
from steppe._engines.base.sharding import local
from steppe._engines.cpu.operands import Formats
from steppe._engines.cpu.templates import ARGUMENTS
from steppe._shared.array_types import Array, Integers

#: Elements that a thread takes at a time: their operands fit into its second-level cache.
CHUNK = 16_384

# Elements of tensors that are summed up before any is updated.
_WAVE = 64 * CHUNK

_NOWHERE = torch.empty(0)


@dataclass
class CpuTable:
    """Where the tensors of a batch lie, and how they are cut.

    Attributes
    ----------
    formats
        Number formats of parameters and state.
    fixed
        All addresses but the gradients', as the lists they were read as: while they are equal, so
        are the shapes, strides and formats that have been checked.
    tensors
        Addresses of each row's parameter, gradient, state, and the sum of its slots.
    scales
        Addresses of the scales of each row's state.
    slots, slot_scales
        Addresses of each row's slots, and of their scales.
    identities
        Number and step count of each row, which its noise is made from.
    chunks
        Of each chunk: its row, first element and number of elements, where that element lies in
        the whole tensor, and how many blocks come before it here.
    sizes, bounds
        Each row's number of elements, and where its chunks begin; last their number.
    wave_ends
        Where groups of tensors end that are summed up before they are updated.
    dtype, strides
        Of the parameters; one format, and each row's strides.
    arguments
        What kernels are given of all this.
    """

    formats: Formats
    fixed: list[list[int]]
    tensors: Integers
    scales: Integers
    slots: Integers
    slot_scales: Integers
    identities: Integers
    chunks: Integers
    sizes: Integers
    bounds: Integers
    wave_ends: Integers
    dtype: torch.dtype
    strides: list[tuple[int, ...]]
    arguments: list[int] = field(init=False)

    def __post_init__(self) -> None:
        """Note where the arrays lie."""
        values = dict.fromkeys(ARGUMENTS, 0)
        values |= {"count": len(self.chunks), "slot_width": self.slots.shape[1]}
        for name in ("tensors", "scales", "slots", "slot_scales", "identities", "chunks"):
            values[name] = address_of(getattr(self, name))
        self.arguments = [values[name] for name in ARGUMENTS]


def table_of(batch: ParamBatch) -> CpuTable:
    """Return the batch's table, which ``refresh`` has made."""
    table: CpuTable = batch.cache["cpu"]
    return table


def refresh(batch: ParamBatch) -> str | None:
    """Bring the batch's table up to date; where a tensor has moved, check it first."""
    fixed = fixed_addresses(batch)
    table: CpuTable | None = batch.cache.get("cpu")
    if table is None or table.fixed != fixed:
        for row in batch.rows:
            if found := param_objection(row.param) or state_objection(batch, row):
                return found
        table = batch.cache["cpu"] = new_table(batch, fixed)
    table.tensors[:, 1] = [
        _gradient_address(row, stride, table.dtype)
        for row, stride in zip(batch.rows, table.strides, strict=True)
    ]
    return None


def _gradient_address(row: ParamRow, stride: tuple[int, ...], dtype: torch.dtype) -> int:
    """Return where a gradient lies; one laid out unlike its parameter is copied."""
    if row.grad.stride() != stride or row.grad.dtype is not dtype:
        row.grad = torch.empty_like(row.param).copy_(row.grad)
    return row.grad.data_ptr()


def fixed_addresses(batch: ParamBatch) -> list[list[int]]:
    """Return the addresses of all tensors but the gradients, tensor kind by tensor kind.

    A complex tensor lies where its real view does. This is most of a step over many small tensors.
    """
    states = [row.parts for row in batch.rows]

    def of(name: str) -> list[int]:
        return [state.get(name, _NOWHERE).data_ptr() for state in states]

    def scales_of(name: str, format: str) -> list[int]:
        return of(scale_name(name)) if format in EIGHT_BITS else nowhere

    nowhere = [0] * len(states)
    addresses = [[row.param.data_ptr() for row in batch.rows]]
    addresses += [[state[name].data_ptr() for state in states] for name in batch.kernel.state]
    formats = zip(batch.kernel.state, batch.formats, strict=False)
    addresses += [scales_of(name, format) for name, format in formats]
    if batch.kernel.buffer is None:
        return addresses
    addresses.append(of(SLOT_SUM))
    if not keeps_sum(batch):
        slots = _slot_names(batch)
        addresses += [*map(of, slots), *(scales_of(name, batch.formats[-1]) for name in slots)]
    return addresses


def _slot_names(batch: ParamBatch) -> list[str]:
    return [slot_name(i) for i in range(batch.capacity)]


def keeps_sum(batch: ParamBatch) -> bool:
    """Whether the slots are in full precision: then only those written to need be found."""
    return batch.capacity > 0 and batch.formats[-1] in ("float32", "float64")


def new_table(batch: ParamBatch, fixed: list[list[int]]) -> CpuTable:
    """Lay out a batch whose tensors lie at the ``fixed`` addresses."""
    rows, count = batch.rows, len(batch.kernel.state)
    columns = np.array(fixed, dtype=np.int64).T
    formats = Formats(format_of("", rows[0].param), batch.formats, batch.team is not None)
    cuts = batch.pieces(CHUNK)
    slot_width = 0 if keeps_sum(batch) else batch.capacity
    widths = [1 + count, count, int(batch.kernel.buffer is not None), slot_width]
    tensors, scales, sums, slots, slot_scales = np.split(columns, np.cumsum(widths), axis=1)
    if keeps_sum(batch):
        slots = np.zeros((len(rows), batch.capacity), dtype=np.int64)
    empty = np.zeros((len(rows), 1), dtype=np.int64)
    return CpuTable(
        formats=formats,
        fixed=fixed,
        tensors=np.ascontiguousarray(np.hstack([tensors[:, :1], empty, tensors[:, 1:], sums])),
        scales=np.ascontiguousarray(scales),
        slots=np.ascontiguousarray(slots),
        slot_scales=np.ascontiguousarray(slot_scales),
        identities=np.array([(row.number, 0) for row in rows], dtype=np.int64),
        chunks=cuts,
        sizes=np.array([row.param.numel() for row in rows], dtype=np.int64),
        bounds=np.searchsorted(cuts[:, 0], np.arange(len(rows) + 1)),
        wave_ends=_wave_ends(cuts),
        dtype=rows[0].param.dtype,
        strides=[row.param.stride() for row in rows],
    )


def state_objection(batch: ParamBatch, row: ParamRow) -> str | None:
    """Say why a parameter's state does not suit a kernel; None if it does."""
    if row.param.dtype != batch.rows[0].param.dtype or row.formats(batch.kernel) != batch.formats:
        return "parameters or state have changed their format"
    slots = _slot_names(batch)
    sums = [SLOT_SUM] if SLOT_SUM in row.state else []
    for name in (*batch.kernel.state, *sums, *slots):
        value = row.part(name)
        if value.shape != row.param.shape or not is_alike(value, row.param):
            return "state differs from its parameter in shape or layout"
        scales = row.parts.get(scale_name(name))
        if value.dtype == torch.uint8 and not _is_scales(scales, row):
            return "the scales of 8-bit state are not one for each block"
    if slots and len({row.part(name).dtype for name in slots}) > 1:
        return "slots differ in number format"
    if slots and keeps_sum(batch) != bool(sums):
        return "the sum of the slots is kept for slots in full precision only"
    wide = wide_dtype(row.param)
    if sums and {row.part(name).dtype for name in (SLOT_SUM, *slots)} != {wide}:
        return "slots are in another format than their sum is computed in"
    return None


def _is_scales(scales: Tensor | None, row: ParamRow) -> bool:
    return (
        scales is not None
        and scales.shape == (row.share.blocks(BLOCK),)
        and scales.dtype == torch.float32
        and scales.is_contiguous()
    )


def find_slots(batch: ParamBatch, table: CpuTable, places: Iterable[tuple[int, int]]) -> None:
    """Bring the addresses of slots, each the row's and its own number, up to date."""
    for i, index in places:
        row, name = batch.rows[i], slot_name(index)
        slot = row.part(name)
        if slot.data_ptr() == table.slots[i, index]:
            continue
        if slot.stride() != table.strides[i] or slot.dtype != row.part(SLOT_SUM).dtype:
            # Somebody has put another tensor in its place.
            fresh = torch.empty_like(row.state[SLOT_SUM])
            local(fresh).copy_(row.parts[name])
            row.state[name], row.parts[name] = fresh, local(fresh)
        table.slots[i, index] = row.part(name).data_ptr()


def _wave_ends(chunks: Integers) -> Integers:
    """Return where groups of whole tensors end, as numbers of chunks, that fit into the cache."""
    row, size = chunks[:, 0], chunks[:, 2]
    before = np.cumsum(size) - size
    wave = before[np.searchsorted(row, row)] // _WAVE
    return np.array([*(1 + np.flatnonzero(np.diff(wave))), len(chunks)])


def address_of(array: Array) -> int:
    """Return where an array lies; four times as fast as ``array.ctypes``."""
    address: int = array.__array_interface__["data"][0]
    return address
