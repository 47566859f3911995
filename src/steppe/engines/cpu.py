"""Numba: one parallel loop over all tensors of a batch, at the speed of memory."""

import os
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import Parameter

from steppe.engines import cpu_buffer, scalars
from steppe.engines.codegen import Formats
from steppe.engines.kernel import (
    BIRTHS,
    KEYS,
    REPLACEMENTS,
    RESUM_EVERY,
    SLOT_SUM,
    Buffer,
    slot_name,
)
from steppe.engines.kernel_files import norm_kernels, update_kernels
from steppe.engines.plan import Batch, Row
from steppe.engines.storage import blocks, format_of, scale_name
from steppe.rules import remember_fifo

name = "cpu"

#: Elements that a thread takes at a time: their operands fit into its second-level cache.
CHUNK = 16_384

_FORMATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
_MOST_THREADS: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
_BOOKS = (KEYS, BIRTHS, REPLACEMENTS)
_NOWHERE = torch.empty(0)

# The threads of a parallel loop do not survive a fork, and OpenMP ends a process that tries: this
# is the process that has started them, if any has.
_started_in: int | None = None


@dataclass
class Table:
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
    slots, slot_scales, books, capacities
        Addresses of each row's slots, their scales, and its keys, births and replacements.
    identities
        Number and step count of each row, which its noise is made from.
    chunks
        Row, first element and number of elements of each chunk.
    """

    formats: Formats
    fixed: list[list[int]]
    tensors: Integers
    scales: Integers
    slots: Integers
    slot_scales: Integers
    books: Integers
    capacities: Integers
    identities: Integers
    chunks: Integers


def objection(batch: Batch) -> str | None:
    """Return why this engine cannot run the batch, or None if it can."""
    if batch.device.type != "cpu":
        return f"parameters lie on {batch.device}"
    if batch.demand.capturable or batch.demand.differentiable:
        return "a capturable or differentiable step is plain torch's"
    if _started_in not in (None, os.getpid()):
        return "the process was forked, and a parallel loop's threads with it are gone"
    if any(row.state for row in batch.rows):
        return _refresh(batch)
    return next(filter(None, map(_format_objection, batch.rows)), None)


def square_norm(batch: Batch) -> Tensor:
    """Return the squared L2 norm of all gradients of the batch."""
    return torch.tensor(_square_sums(batch).sum())


def _square_sums(batch: Batch) -> Floats:
    """Return the sum of the squared gradient of each row, in float64 and a fixed order."""
    table = _table(batch)
    sums = np.empty(len(table.chunks))
    _set_threads()
    norm_kernels(table.formats.param).square_sums(table.tensors, table.scales, table.chunks, sums)
    return _by_row(table, sums)


def step(batch: Batch, priority: Tensor | None) -> None:
    """Advance every row by one step."""
    table, buffer = _table(batch), batch.kernel.buffer
    compiled = update_kernels(batch.kernel, table.formats)
    stored = np.full(len(batch.rows), -1, dtype=np.int64)
    filled = None
    _set_threads()
    if buffer is not None:
        filled = cpu_buffer.count_filled(table.books, table.capacities)
        stored, due = _decide(batch, table, buffer, priority)
    factors = batch.unscale * (1.0 - 2.0 * scalars.column(batch, "maximize"))
    values = np.column_stack([factors, scalars.table(batch, filled)])
    if batch.kernel.mean_square is not None:
        values = np.column_stack([values, _root_mean_squares(batch, table, compiled, values)])
    table.identities[:, 1] = batch.steps.numpy()
    compiled.update(
        table.tensors,
        table.scales,
        table.slots,
        table.slot_scales,
        table.capacities,
        stored,
        table.identities,
        table.chunks,
        values,
    )
    if buffer is not None:
        _sum_afresh(table, due)


# Tables


def _table(batch: Batch) -> Table:
    table: Table = batch.cache["cpu"]
    return table


def _refresh(batch: Batch) -> str | None:
    """Bring the batch's table up to date; where a tensor has moved, check it first."""
    fixed = _fixed_addresses(batch)
    table: Table | None = batch.cache.get("cpu")
    if table is None or table.fixed != fixed:
        batch.cache.pop("cpu", None)
        for row in batch.rows:
            if found := _format_objection(row) or _state_objection(batch, row):
                return found
        table = batch.cache["cpu"] = _new_table(batch, fixed)
    for row in batch.rows:
        # A gradient laid out unlike its parameter is copied.
        if row.grad.dtype != row.param.dtype or row.grad.stride() != row.param.stride():
            row.grad = torch.empty_like(row.param).copy_(row.grad)
    table.tensors[:, 1] = [row.grad.data_ptr() for row in batch.rows]
    return None


def _slot_names(batch: Batch) -> list[str]:
    return [slot_name(i) for i in range(max(row.capacity for row in batch.rows))]


def _fixed_addresses(batch: Batch) -> list[list[int]]:
    """Return the addresses of all tensors but the gradients, tensor kind by tensor kind.

    A complex tensor lies where its real view does. This is most of a step over many small tensors.
    """
    states = [row.state for row in batch.rows]

    def of(name: str) -> list[int]:
        return [state.get(name, _NOWHERE).data_ptr() for state in states]

    def scales_of(name: str, format: str) -> list[int]:
        return of(scale_name(name)) if format.endswith("8") else nowhere

    nowhere = [0] * len(states)
    addresses = [[row.param.data_ptr() for row in batch.rows]]
    addresses += [[state[name].data_ptr() for state in states] for name in batch.kernel.state]
    formats = zip(batch.kernel.state, batch.formats, strict=False)
    addresses += [scales_of(name, format) for name, format in formats]
    if batch.kernel.buffer is None:
        return addresses
    slots = _slot_names(batch)
    addresses += [of(name) for name in (SLOT_SUM, *_BOOKS, *slots)]
    addresses += [scales_of(name, batch.formats[-1]) for name in slots]
    return addresses


def _new_table(batch: Batch, fixed: list[list[int]]) -> Table:
    rows, count = batch.rows, len(batch.kernel.state)
    columns = np.array(fixed, dtype=np.int64).T
    chunks = [
        (i, start, min(CHUNK, row.param.numel() - start))
        for i, row in enumerate(rows)
        for start in range(0, row.param.numel(), CHUNK)
    ]
    has_buffer = batch.kernel.buffer is not None
    sizes = [1 + count, count, has_buffer, len(_BOOKS) * has_buffer]
    slots = len(_slot_names(batch)) if has_buffer else 0
    ends = np.cumsum([*sizes, slots])
    tensors, scales, sums, books, slots, slot_scales = np.split(columns, ends, axis=1)
    empty = np.zeros((len(rows), 1), dtype=np.int64)
    return Table(
        formats=Formats(format_of("", rows[0].param), batch.formats),
        fixed=fixed,
        tensors=np.hstack([tensors[:, :1], empty, tensors[:, 1:], sums]),
        scales=np.ascontiguousarray(scales),
        slots=np.ascontiguousarray(slots),
        slot_scales=np.ascontiguousarray(slot_scales),
        books=np.ascontiguousarray(books),
        capacities=np.array([row.capacity for row in rows], dtype=np.int64),
        identities=np.array([(row.number, 0) for row in rows], dtype=np.int64),
        chunks=np.array(chunks, dtype=np.int64).reshape(-1, 3),
    )


def _format_objection(row: Row) -> str | None:
    """Say why a parameter's own format or layout does not suit; None if it does."""
    param = row.param
    if param.dtype not in _FORMATS:
        return f"{param.dtype} parameters are plain torch's"
    if type(param) not in (Tensor, Parameter):
        return f"parameters are {type(param).__name__}"
    if not _is_dense(param):
        return "a parameter has gaps between its elements"
    return None


def _state_objection(batch: Batch, row: Row) -> str | None:
    slots = [slot_name(i) for i in range(row.capacity)]
    sums = [SLOT_SUM] if SLOT_SUM in row.state else []
    for name in (*batch.kernel.state, *sums, *slots):
        value = row.part(name)
        if value.stride() != row.param.stride():
            return "state differs from its parameter in layout"
        scales = row.state.get(scale_name(name))
        if value.dtype == torch.uint8 and not _is_scales(scales, value):
            return "the scales of 8-bit state are not one for each block"
    if slots and len({row.part(name).dtype for name in slots}) > 1:
        return "slots differ in number format"
    has_low_slots = slots and batch.formats[-1] not in ("float32", "float64")
    if slots and bool(has_low_slots) == bool(sums):
        return "the sum of the slots is kept for slots in full precision only"
    return None


def _is_scales(scales: Tensor | None, value: Tensor) -> bool:
    return (
        scales is not None
        and scales.shape == (blocks(value.numel()),)
        and scales.dtype == torch.float32
        and scales.is_contiguous()
    )


def _is_dense(tensor: Tensor) -> bool:
    """Whether the elements lie without gaps or overlaps, in whatever order of dimensions."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True


# Steps


def _set_threads() -> None:
    """Use as many threads as torch does, as far as Numba has them."""
    global _started_in
    _started_in = os.getpid()
    numba.set_num_threads(min(torch.get_num_threads(), _MOST_THREADS))


def _by_row(table: Table, sums: Floats) -> Floats:
    """Add up the chunks of each row, in their order."""
    rows = len(table.tensors)
    return np.bincount(table.chunks[:, 0], weights=sums, minlength=rows).astype(np.float64)


def _decide(
    batch: Batch, table: Table, buffer: Buffer, priority: Tensor | None
) -> tuple[Integers, NDArray[np.bool_]]:
    """Enter this step into the books; return the slots to store in, and whose sum is due."""
    shared = 0.0 if priority is None else priority.item()
    priorities = np.full(len(batch.rows), shared)
    own = np.array([row.group["scope"] == "tensor" for row in batch.rows])
    if own.any():
        priorities[own] = np.sqrt(_square_sums(batch)[own]) * batch.unscale
    stored, due = cpu_buffer.decide(
        table.books,
        table.capacities,
        priorities,
        scalars.column(batch, "priority_decay"),
        batch.steps.numpy().astype(np.float64),
        buffer.remember is remember_fifo,
        RESUM_EVERY,
    )
    return stored, due


def _root_mean_squares(batch: Batch, table: Table, compiled: ModuleType, values: Floats) -> Floats:
    sums = np.empty(len(table.chunks))
    compiled.squares(table.tensors, table.scales, table.chunks, values, sums)
    sizes = np.array([max(row.param.numel(), 1) for row in batch.rows])
    means: Floats = _by_row(table, sums) / sizes
    return np.sqrt(means)


def _sum_afresh(table: Table, due: NDArray[np.bool_]) -> None:
    """Sum the slots of the rows that are due and keep a sum."""
    sums = np.ascontiguousarray(table.tensors[:, -1])
    due &= sums != 0
    if due.any():
        chunks = table.chunks[due[table.chunks[:, 0]]]
        like = np.empty(0, dtype=table.formats.wide)
        cpu_buffer.sum_slots(sums, table.slots, table.capacities, chunks, like)
