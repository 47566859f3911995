"""What the CPU kernels are told: where the tensors of a batch lie, and how they are cut."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from steppe._engines.base.memory_layout import is_alike, param_objection
from steppe._engines.base.method import SLOT_SUM, slot_name
from steppe._engines.base.number_formats import BLOCK, EIGHT_BITS, format_of, scale_name, wide_dtype
from steppe._engines.base.plan import ParamBatch, ParamRow
from steppe._engines.base.sharding import local_part
from steppe._engines.cpu.compile_cache import Native
from steppe._engines.cpu.openmp import Threads
from steppe._engines.cpu.operands import Formats
from steppe._engines.cpu.templates import ARGUMENTS
from steppe._shared.array_types import Array, Floats, Integers

#: Elements that a thread takes at a time: their operands fit into its second-level cache.
CHUNK = 16_384

# Elements of tensors that are summed up before any is updated.
_WAVE = 64 * CHUNK

# Integers in a cache line.
_LINE = 8

# What kernels read of a table.
_ARRAYS = (
    "tensors", "scales", "slots", "slot_scales", "identities", "chunks", "sums", "sizes", "bounds",
    "wave_ends", "lines", "table", "stored", "means", "roots", "pending", "counters",
)  # fmt: skip


class Launch(NamedTuple):
    """A kernel ready to be called on all threads: a step then calls no Python function for it.

    Attributes
    ----------
    run
        What calls it.
    arguments, arrays
        What it reads, which must live as long.
    """

    run: Callable[[], Any]
    arguments: Integers
    arrays: dict[str, Array]


@dataclass
class CpuTable:
    """Where the tensors of a batch lie, and how they are cut.

    Kernels read the arrays where they lie: a step writes numbers into them, and nothing else.

    Attributes
    ----------
    formats
        Number formats of parameters and state.
    names
        State whose addresses must not have changed: "" stands for what there is not.
    fixed
        The addresses of parameters and of this state, as the lists they were read as: while they
        are equal, so are the shapes, strides and formats that have been checked.
    tensors
        Addresses of each row's parameter, gradient, state, and the sum of its slots.
    gradients
        Those of the gradients alone.
    scales
        Addresses of the scales of each row's state.
    slots, slot_scales
        Addresses of each row's slots, and of their scales.
    identities
        Index and step count of each row, which its noise is made from.
    chunks
        Of each chunk: its row, first element and number of elements, where that element lies in
        the whole tensor, and how many blocks come before it here.
    sums
        What kernels sum up in each chunk.
    sizes, bounds, chunk_counts
        Each row's number of elements, where its chunks begin, last their number, and how many
        there are.
    wave_ends
        Where groups of tensors end that are summed up before they are updated.
    dtype, strides
        Of the parameters; one format, and each row's strides.
    lines, table
        Which line of the scalars is each row's; lines of a gradient's factor and the rule's
        scalars.
    stored
        The slot in which each row stores this step's item, -1 where there is none.
    means, roots
        Means of each row's second moment, and roots of them.
    slot_names, keeps_sum
        The slots, and whether their sum is kept: they are then found where they are written to.
    pending
        How many of each row's chunks are still to be summed up.
    threads
        Those that launches are prepared for.
    counters
        How many chunks have been taken from each thread's two queues, a cache line each; and how
        many threads have arrived.
    launches
        What calls a kernel on all threads, by the kernel's name.
    """

    formats: Formats
    names: list[str]
    fixed: list[list[int]]
    tensors: Integers
    gradients: Integers
    scales: Integers
    slots: Integers
    slot_scales: Integers
    identities: Integers
    chunks: Integers
    sums: Floats
    sizes: Integers
    bounds: Integers
    chunk_counts: Integers
    wave_ends: Integers
    dtype: torch.dtype
    strides: list[tuple[int, ...]]
    lines: Integers
    table: Floats
    stored: Integers
    means: Floats
    roots: Floats
    pending: Integers
    slot_names: list[str]
    keeps_sum: bool
    threads: Threads | None = None
    counters: Integers = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    launches: dict[str, Launch] = field(default_factory=dict)

    def use(self, threads: Threads) -> None:
        """Forget what has been prepared for other threads."""
        self.threads, self.launches = threads, {}
        self.counters = np.zeros((2 * threads.count + 1) * _LINE, dtype=np.int64)

    def prepare(self, kernel: Native, **arrays: Array) -> Launch:
        """Prepare to call a kernel with the table's arrays, and these in the place of some."""
        assert self.threads is not None
        arrays = {name: getattr(self, name) for name in _ARRAYS} | arrays
        values = {name: _address_of(array) for name, array in arrays.items()}
        values |= {
            "thread_numbers": self.threads.number_function,
            "arrivals": values["counters"] + 8 * 2 * self.threads.count * _LINE,
            "threads": self.threads.count,
            "count": len(arrays["chunks"]),
            "waves": len(self.wave_ends),
            "slot_width": self.slots.shape[1],
            "line_width": self.table.shape[1],
        }
        arguments = np.array([values[name] for name in ARGUMENTS], dtype=np.int64)
        return Launch(self.threads.prepare(kernel, _address_of(arguments)), arguments, arrays)


def refresh(batch: ParamBatch, names: list[str], fixed: list[list[int]]) -> str | None:
    """Lay out a batch whose tensors lie at the ``fixed`` addresses, if a kernel can take them."""
    for row in batch.rows:
        if found := param_objection(row.param) or state_objection(batch, row):
            return found
    batch.cache["cpu"] = _new_table(batch, names, fixed)
    return None


def names_of(batch: ParamBatch) -> list[str]:
    """Return the names of state as :attr:`CpuTable.names` has them."""
    method, formats = batch.method, batch.formats
    scales = [
        scale_name(name) if format in EIGHT_BITS else ""
        for name, format in zip(method.state, formats, strict=False)
    ]
    names = [*method.state, *scales]
    if method.buffer is None:
        return names
    names.append(SLOT_SUM)
    slots = _slot_names(batch)
    if not slots or keeps_sum(batch):
        return names
    has_scales = formats[-1] in EIGHT_BITS
    return [*names, *slots, *(scale_name(name) if has_scales else "" for name in slots)]


def _slot_names(batch: ParamBatch) -> list[str]:
    return [slot_name(i) for i in range(batch.capacity)]


def keeps_sum(batch: ParamBatch) -> bool:
    """Whether the slots are in full precision: then only those written to need be found."""
    return batch.capacity > 0 and batch.formats[-1] in ("float32", "float64")


def _new_table(batch: ParamBatch, names: list[str], fixed: list[list[int]]) -> CpuTable:
    """Lay out a batch whose tensors lie at the ``fixed`` addresses."""
    rows, method = batch.rows, batch.method
    count = len(method.state)
    slot_width = 0 if keeps_sum(batch) else batch.capacity
    widths = [1 + count, count, int(method.buffer is not None), slot_width]
    columns = np.array(fixed, dtype=np.int64).T
    tensors, scales, sums, slots, slot_scales = np.split(columns, np.cumsum(widths), axis=1)
    if keeps_sum(batch):
        found = [[row.parts[name].data_ptr() for name in _slot_names(batch)] for row in rows]
        slots = np.array(found, dtype=np.int64)
    chunks = batch.chunks(CHUNK)
    bounds = np.searchsorted(chunks[:, 0], np.arange(len(rows) + 1))
    scalars = 1 + len([name for name in method.scalar_names if name != "rms"])
    empty = np.zeros((len(rows), 1), dtype=np.int64)
    return CpuTable(
        formats=Formats(format_of("", rows[0].param), batch.formats, batch.shard_group is not None),
        names=names,
        fixed=fixed,
        tensors=np.ascontiguousarray(np.hstack([tensors[:, :1], empty, tensors[:, 1:], sums])),
        gradients=np.zeros(len(rows), dtype=np.int64),
        scales=np.ascontiguousarray(scales),
        slots=np.ascontiguousarray(slots),
        slot_scales=np.ascontiguousarray(slot_scales),
        identities=np.array([(row.index, 0) for row in rows], dtype=np.int64),
        chunks=chunks,
        sums=np.zeros(len(chunks)),
        sizes=np.array([row.param.numel() for row in rows], dtype=np.int64),
        bounds=bounds,
        chunk_counts=np.diff(bounds),
        wave_ends=_wave_ends(chunks),
        dtype=rows[0].param.dtype,
        strides=[row.param.stride() for row in rows],
        lines=np.zeros(len(rows), dtype=np.int64),
        table=np.zeros((len(rows), scalars)),
        stored=np.full(len(rows), -1, dtype=np.int64),
        means=batch.means.numpy(),
        roots=np.zeros(len(rows)),
        pending=np.zeros(len(rows), dtype=np.int64),
        slot_names=_slot_names(batch),
        keeps_sum=keeps_sum(batch),
    )


def state_objection(batch: ParamBatch, row: ParamRow) -> str | None:
    """Say why a parameter's state does not suit a kernel; None if it does."""
    if row.param.dtype != batch.rows[0].param.dtype or row.formats(batch.method) != batch.formats:
        return "parameters or state have changed their format"
    slots = _slot_names(batch)
    sums = [SLOT_SUM] if SLOT_SUM in row.state else []
    for name in (*batch.method.state, *sums, *slots):
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
        and scales.shape == (row.shard.blocks(BLOCK),)
        and scales.dtype == torch.float32
        and scales.is_contiguous()
    )


def find_slot(batch: ParamBatch, table: CpuTable, i: int, index: int) -> None:
    """Note where slot ``index`` of row ``i`` has come to lie."""
    row, name = batch.rows[i], slot_name(index)
    slot = row.part(name)
    if slot.stride() != table.strides[i] or slot.dtype != row.part(SLOT_SUM).dtype:
        # Somebody has put another tensor in its place.
        fresh = torch.empty_like(row.state[SLOT_SUM])
        local_part(fresh).copy_(row.parts[name])
        row.state[name], row.parts[name] = fresh, local_part(fresh)
    table.slots[i, index] = row.part(name).data_ptr()


def _wave_ends(chunks: Integers) -> Integers:
    """Return where groups of whole tensors end, as numbers of chunks, that fit into the cache."""
    row, size = chunks[:, 0], chunks[:, 2]
    before = np.cumsum(size) - size
    wave = before[np.searchsorted(row, row)] // _WAVE
    return np.array([*(1 + np.flatnonzero(np.diff(wave))), len(chunks)])


def _address_of(array: Array) -> int:
    """Return where an array lies; four times as fast as ``array.ctypes``."""
    address: int = array.__array_interface__["data"][0]
    return address
