"""What the CPU kernels are told: where the tensors of a batch lie, and how they are cut."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from steppe._engines.base.batch import ParamBatch
from steppe._engines.base.memory_layout import is_alike
from steppe._engines.base.method import SLOT_SUM, slot_name
from steppe._engines.base.number_formats import (
    BLOCK,
    PARAM_ERROR,
    scale_name,
    wide_dtype,
)
from steppe._engines.base.param_row import ParamRow
from steppe._engines.base.tensor_facts import Fact
from steppe._engines.cpu.compile_cache import Native
from steppe._engines.cpu.openmp import Threads
from steppe._engines.cpu.operands import Formats
from steppe._engines.cpu.templates import ARGUMENTS
from steppe._shared.array_address import address_of
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
    "wave_ends", "lines", "table", "stored", "means", "roots", "pending", "counters", "errors",
)  # fmt: skip


class Launch(NamedTuple):
    """A kernel ready to be called on all threads: a step then calls no Python function for it.

    Attributes
    ----------
    run
        What calls it.
    kernel
        What keeps its code in memory. That kernels are cached does not: threads that ask for one at
        the same time have it loaded twice, and the cache keeps one of them.
    arguments, arrays
        What it reads, which must live as long.
    """

    run: Callable[[], Any]
    kernel: Native
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
    facts
        The batch's facts that the addresses were taken from.
    tensors
        Addresses of each row's parameter, gradient, state, and the sum of its slots.
    gradients
        Those of the gradients alone.
    errors
        Addresses of the errors of each row's parameter.
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
    lines, table
        Which line of the scalars is each row's; lines of a gradient's factor and the rule's
        scalars.
    stored
        The slot in which each row stores this step's item, -1 where there is none.
    means, roots
        Means of each row's second moment, and roots of them.
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
    facts: Integers
    tensors: Integers
    gradients: Integers
    errors: Integers
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
    lines: Integers
    table: Floats
    stored: Integers
    means: Floats
    roots: Floats
    pending: Integers
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
        values = {name: address_of(array) for name, array in arrays.items()}
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
        run = self.threads.prepare(kernel, address_of(arguments))
        return Launch(run, kernel, arguments, arrays)


def new_table(batch: ParamBatch) -> CpuTable:
    """Lay out a batch whose facts have been noted."""
    rows, method = batch.rows, batch.method
    assert batch.held is not None
    count, has_buffer = len(method.state), method.buffer is not None
    chunks = batch.chunks(CHUNK)
    bounds = np.searchsorted(chunks[:, 0], np.arange(len(rows) + 1))
    scalars = 1 + len([name for name in method.scalar_names if name != "rms"])

    def addresses(width: int) -> Integers:
        return np.zeros((len(rows), width), dtype=np.int64)

    table = CpuTable(
        formats=Formats(batch.param_format, batch.formats, batch.shard_group is not None),
        facts=batch.held.facts,
        tensors=addresses(2 + count + has_buffer),
        gradients=np.zeros(len(rows), dtype=np.int64),
        errors=np.zeros(len(rows), dtype=np.int64),
        scales=addresses(count),
        slots=addresses(batch.capacity),
        slot_scales=addresses(batch.capacity),
        identities=np.stack([batch.indices, np.zeros_like(batch.indices)], axis=1),
        chunks=chunks,
        sums=np.zeros(len(chunks)),
        sizes=batch.sizes,
        bounds=bounds,
        chunk_counts=np.diff(bounds),
        wave_ends=_wave_ends(chunks),
        lines=np.zeros(len(rows), dtype=np.int64),
        table=np.zeros((len(rows), scalars)),
        stored=np.full(len(rows), -1, dtype=np.int64),
        means=batch.means.numpy(),
        roots=np.zeros(len(rows)),
        pending=np.zeros(len(rows), dtype=np.int64),
    )
    note_addresses(batch, table)
    return table


def note_addresses(batch: ParamBatch, table: CpuTable) -> None:
    """Write down where the parameters and their state lie."""
    assert batch.held is not None
    table.facts = batch.held.facts
    found = table.facts[:, Fact.ADDRESS]
    rows, method = len(batch.rows), batch.method
    names = batch.held.names[0]
    state = found[rows:].reshape(rows, len(names))
    column = {name: state[:, i] for i, name in enumerate(names)}
    nowhere = np.zeros(rows, dtype=np.int64)
    table.tensors[:, 0] = found[:rows]
    table.errors[:] = column.get(PARAM_ERROR, nowhere)
    for i, name in enumerate(method.state):
        table.tensors[:, 2 + i] = column[name]
        table.scales[:, i] = column.get(scale_name(name), nowhere)
    if method.buffer is not None:
        table.tensors[:, -1] = column.get(SLOT_SUM, nowhere)
    for i in range(batch.capacity):
        table.slots[:, i] = column[slot_name(i)]
        table.slot_scales[:, i] = column.get(scale_name(slot_name(i)), nowhere)


def state_objection(batch: ParamBatch, row: ParamRow) -> str | None:
    """Say why a parameter's state does not suit a kernel; None if it does."""
    if row.param_format != batch.param_format or row.formats(batch.method) != batch.formats:
        return "parameters or state have changed their format"
    slots = [slot_name(i) for i in range(batch.capacity)]
    sums = [SLOT_SUM] if SLOT_SUM in row.state else []
    errors = [PARAM_ERROR] if row.keeps_error else []
    for name in (*batch.method.state, *sums, *slots, *errors):
        value = row.part(name)
        if value.shape != row.param.shape or not is_alike(value, row.param):
            return "state differs from its parameter in shape or layout"
        scales = row.parts.get(scale_name(name))
        if value.dtype == torch.uint8 and not _is_scales(scales, row):
            return "the scales of 8-bit state are not one for each block"
    if slots and len({row.part(name).dtype for name in slots}) > 1:
        return "slots differ in number format"
    if slots and batch.keeps_sum != bool(sums):
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


def _wave_ends(chunks: Integers) -> Integers:
    """Return where groups of whole tensors end, as numbers of chunks, that fit into the cache."""
    row, size = chunks[:, 0], chunks[:, 2]
    before = np.cumsum(size) - size
    wave = before[np.searchsorted(row, row)] // _WAVE
    return np.array([*(1 + np.flatnonzero(np.diff(wave))), len(chunks)])
