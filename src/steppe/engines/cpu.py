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
from steppe.engines.codegen import kernels
from steppe.engines.kernel import (
    BIRTHS,
    KEYS,
    REPLACEMENTS,
    RESUM_EVERY,
    SLOT_SUM,
    Buffer,
    slot_name,
)
from steppe.engines.plan import Batch, Row
from steppe.rules import remember_fifo

name = "cpu"

#: Elements that a thread takes at a time: their operands fit into its second-level cache.
CHUNK = 16_384

_NUMBERS = {torch.float32: np.float32, torch.float64: np.float64}
Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
_MOST_THREADS: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
_BOOKS = (KEYS, BIRTHS, REPLACEMENTS)

# The threads of a parallel loop do not survive a fork, and OpenMP ends a process that tries: this
# is the process that has started them, if any has.
_started_in: int | None = None


@dataclass
class Table:
    """Where the tensors of a batch lie, and how they are cut.

    Attributes
    ----------
    number
        The NumPy type of parameters, gradients and state.
    addresses
        Of each row's parameter, gradient, state, and the sum of its slots.
    fixed
        The same without gradients, as the lists they were read as: while they are equal, so are
        the shapes, strides and formats that have been checked.
    chunks
        Row, first element and number of elements of each chunk.
    slots, books, capacities
        Addresses of each row's slots, and of its keys, births and number of replacements.
    """

    number: Any
    addresses: Integers
    fixed: list[list[int]]
    chunks: Integers
    slots: Integers
    books: Integers
    capacities: Integers


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
    cpu_buffer.square_sums(table.addresses, table.chunks, np.empty(0, dtype=table.number), sums)
    return _by_row(table, sums)


def step(batch: Batch, priority: Tensor | None) -> None:
    """Advance every row by one step."""
    table, buffer = _table(batch), batch.kernel.buffer
    compiled = kernels(batch.kernel, np.dtype(table.number).name)
    stored = np.zeros(len(batch.rows), dtype=np.int64)
    due = stored.astype(bool)
    filled = None
    _set_threads()
    if buffer is not None:
        filled = cpu_buffer.count_filled(table.books, table.capacities)
        stored, due = _decide(batch, table, buffer, priority)
    signs = 1.0 - 2.0 * scalars.column(batch, "maximize")
    values = np.column_stack([signs, scalars.table(batch, filled)])
    if batch.kernel.mean_square is not None:
        values = np.column_stack([values, _root_mean_squares(batch, table, compiled, values)])
    compiled.update(table.addresses, stored, table.chunks, values)
    if due.any():
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
    table.addresses[:, 1] = [row.grad.data_ptr() for row in batch.rows]
    return None


def _fixed_addresses(batch: Batch) -> list[list[int]]:
    """Return the addresses of all tensors but the gradients, tensor kind by tensor kind.

    A complex tensor lies where its real view does. This is most of a step over many small tensors.
    """
    addresses = [[row.param.data_ptr() for row in batch.rows]]
    states = [row.state for row in batch.rows]
    for name in batch.kernel.state:
        addresses.append([state[name].data_ptr() for state in states])
    if batch.kernel.buffer is None:
        return addresses
    zeros = _zeros(batch)
    nowhere = torch.empty(0)
    names = [slot_name(i) for i in range(max(row.capacity for row in batch.rows))]
    addresses.append([state.get(SLOT_SUM, zeros).data_ptr() for state in states])
    for name in (*_BOOKS, *names):
        addresses.append([state.get(name, nowhere).data_ptr() for state in states])
    return addresses


def _zeros(batch: Batch) -> Tensor:
    """Return the sum of the slots of those that have none."""
    if "zeros" not in batch.cache:
        sizes = [0, *(row.param.numel() for row in batch.rows if not row.capacity)]
        batch.cache["zeros"] = torch.zeros(max(sizes), dtype=batch.rows[0].param.dtype)
    zeros: Tensor = batch.cache["zeros"]
    return zeros


def _new_table(batch: Batch, fixed: list[list[int]]) -> Table:
    rows = batch.rows
    width = 1 + len(batch.kernel.state) + (batch.kernel.buffer is not None)
    columns = np.array(fixed, dtype=np.int64).T
    addresses = np.insert(columns[:, :width], 1, 0, axis=1)
    chunks = [
        (i, start, min(CHUNK, row.param.numel() - start))
        for i, row in enumerate(rows)
        for start in range(0, row.param.numel(), CHUNK)
    ]
    return Table(
        number=_NUMBERS[rows[0].param.dtype],
        fixed=fixed,
        addresses=np.ascontiguousarray(addresses),
        chunks=np.array(chunks, dtype=np.int64).reshape(-1, 3),
        books=np.ascontiguousarray(columns[:, width : width + len(_BOOKS)]),
        slots=np.ascontiguousarray(columns[:, width + len(_BOOKS) :]),
        capacities=np.array([row.capacity for row in rows], dtype=np.int64),
    )


def _format_objection(row: Row) -> str | None:
    """Say why a parameter's own format or layout does not suit; None if it does."""
    param = row.param
    if param.dtype not in _NUMBERS:
        return f"{param.dtype} parameters are plain torch's in this version"
    if type(param) not in (Tensor, Parameter):
        return f"parameters are {type(param).__name__}"
    if not _is_dense(param):
        return "a parameter has gaps between its elements"
    return None


def _state_objection(batch: Batch, row: Row) -> str | None:
    names = [*batch.kernel.state]
    if row.capacity:
        names += [SLOT_SUM, *(slot_name(i) for i in range(row.capacity))]
    for value in map(row.part, names):
        if value.dtype != row.param.dtype or value.stride() != row.param.stride():
            return "state differs from its parameter in format or layout"
    return None


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
    rows = len(table.addresses)
    return np.bincount(table.chunks[:, 0], weights=sums, minlength=rows).astype(np.float64)


def _decide(
    batch: Batch, table: Table, buffer: Buffer, priority: Tensor | None
) -> tuple[Integers, NDArray[np.bool_]]:
    """Enter this step into the books; return the slots to store in, and whose sum is due."""
    shared = 0.0 if priority is None else priority.item()
    priorities = np.full(len(batch.rows), shared)
    own = np.array([row.group["scope"] == "tensor" for row in batch.rows])
    if own.any():
        priorities[own] = np.sqrt(_square_sums(batch)[own])
    stored, due = cpu_buffer.decide(
        table.books,
        table.slots,
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
    compiled.squares(table.addresses, table.chunks, values, sums)
    sizes = np.array([max(row.param.numel(), 1) for row in batch.rows])
    means: Floats = _by_row(table, sums) / sizes
    return np.sqrt(means)


def _sum_afresh(table: Table, due: NDArray[np.bool_]) -> None:
    chunks = table.chunks[due[table.chunks[:, 0]]]
    sums = np.ascontiguousarray(table.addresses[:, -1])
    like = np.empty(0, dtype=table.number)
    cpu_buffer.sum_slots(sums, table.slots, table.capacities, chunks, like)
