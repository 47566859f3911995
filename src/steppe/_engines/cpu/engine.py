"""Numba: one parallel loop over all tensors of a batch, at the speed of memory."""

from itertools import product

import numpy as np
import torch
from torch import Tensor

from steppe._engines.base import scalars
from steppe._engines.base.bind import bind
from steppe._engines.base.memory_layout import param_objection
from steppe._engines.base.method import RESUM_EVERY
from steppe._engines.base.norms import Norms
from steppe._engines.base.plan import ParamBatch
from steppe._engines.cpu import openmp
from steppe._engines.cpu.compile_cache import (
    Native,
    norm_kernel,
    slot_kernel,
    update_kernel,
)
from steppe._engines.cpu.table import (
    CpuTable,
    address_of,
    find_slots,
    keeps_sum,
    refresh,
    table_of,
)
from steppe._engines.cpu.templates import ARGUMENTS
from steppe._shared.array_types import Array, Floats, Integers

name = "cpu"
reads_amp = False

# Integers in a cache line.
_LINE = 8


def objection(batch: ParamBatch) -> str | None:
    """Return why this engine cannot run the batch, or None if it can."""
    if batch.device.type != "cpu":
        return f"parameters lie on {batch.device}"
    if batch.demand.capturable or batch.demand.differentiable:
        return "a capturable or differentiable step is plain torch's"
    if any(row.state for row in batch.rows):
        return refresh(batch)
    return next(filter(None, (param_objection(row.param) for row in batch.rows)), None)


def square_sums(batch: ParamBatch) -> Tensor:
    """Return the sum of the squared gradient of each row here, and last that of all."""
    sums = _square_sums(batch)
    return torch.from_numpy(np.append(sums, sums.sum()))


def _square_sums(batch: ParamBatch) -> Floats:
    """Return the sum of the squared gradient of each row, in float64 and a fixed order."""
    table = table_of(batch)
    sums = np.empty(len(table.chunks))
    gradients = np.ascontiguousarray(table.tensors[:, 1])
    kernel = norm_kernel(table.formats.param, table.formats.norm_by_blocks(batch.kernel))
    _run(kernel, table, tensors=gradients, sums=sums)
    by_row = np.bincount(table.chunks[:, 0], weights=sums, minlength=len(table.tensors))
    return by_row.astype(np.float64)  # without chunks they are integers


def step(batch: ParamBatch, norms: Norms) -> None:
    """Advance every row of the batch by one step."""
    table = table_of(batch)
    values, lines = scalars.table(batch)
    arrays = {"lines": lines, "table": values}
    if batch.kernel.mean_square is not None:
        squares = norms.squares(batch)
        arrays |= _phases(batch) if squares is None else _roots(batch, squares, values[lines])
    if not batch.capacity:
        _advance(batch, **arrays)
        return
    stored = _remember(batch, norms)
    _find_stored(batch, table, stored)
    _advance(batch, stored=stored, **arrays)
    _sum_afresh(batch, table, stored)


def _advance(batch: ParamBatch, **arrays: Array) -> None:
    """Run the kernel that updates all rows."""
    table = table_of(batch)
    table.identities[:, 1] = batch.steps.numpy()
    _run(update_kernel(batch.kernel, table.formats), table, **arrays)


def _run(kernel: Native, addresses: CpuTable, **arrays: Array) -> None:
    """Call a kernel with the table's arrays, and these, contiguous, in the place of some."""
    count = openmp.count()
    # The counters of two queues for each thread, a cache line each, and that of arrivals.
    arrays["counters"] = np.zeros((2 * count + 1) * _LINE, dtype=np.int64)
    values = {name: address_of(array) for name, array in arrays.items()}
    values["arrivals"] = values["counters"] + 8 * 2 * count * _LINE
    values |= {"thread_numbers": openmp.numbers(), "threads": count}
    if "chunks" in arrays:
        values["count"] = len(arrays["chunks"])
    if "table" in arrays:
        values["line_width"] = arrays["table"].shape[1]
    if "wave_ends" in arrays:
        values["waves"] = len(arrays["wave_ends"])
    arguments = np.array([*map(values.get, ARGUMENTS, addresses.arguments)], dtype=np.int64)
    openmp.run(kernel, address_of(arguments))


# What a step needs


def _remember(batch: ParamBatch, norms: Norms) -> Integers:
    """Enter a step into the books; return the slot to store in, -1 where there is none."""
    keys, births = batch.keys.numpy().T, batch.births.numpy().T
    assert batch.kernel.buffer is not None
    mask, keys[:], births[:] = bind(batch.kernel.buffer.remember, np)(
        keys,
        births,
        np.arange(batch.capacity)[:, None],
        _priorities(batch, norms),
        batch.steps.numpy(),
        scalars.column(batch, "priority_decay"),
    )
    is_new = mask.any(0)
    batch.replacements.numpy()[is_new] += 1
    return np.where(is_new, mask.argmax(0), -1)


def _priorities(batch: ParamBatch, norms: Norms) -> Floats:
    """Return the norm of all gradients, and in its place of those that go by their own."""
    members, group_of_row = scalars.groups(batch)
    goes_by_own = np.array([group["scope"] == "tensor" for group in members])[group_of_row]
    if not goes_by_own.any():
        return np.full(len(batch.rows), float(norms.whole()))
    squares = norms.squares(batch)
    own = np.sqrt(_square_sums(batch) if squares is None else squares.cpu().numpy())
    shared = 0.0 if goes_by_own.all() else float(norms.whole())
    return np.where(goes_by_own, own * batch.unscale, shared)


def _find_stored(batch: ParamBatch, table: CpuTable, stored: Integers) -> None:
    """Find the slots that are stored in; where no sum is kept, all have been found."""
    if keeps_sum(batch):
        rows = np.flatnonzero(stored >= 0)
        find_slots(batch, table, zip(rows.tolist(), stored[rows].tolist(), strict=True))


def _phases(batch: ParamBatch) -> dict[str, Array]:
    """Return what a kernel needs that sums a tensor up before updating it."""
    table = table_of(batch)
    bounds = table.bounds
    return {
        "means": batch.means.numpy(),
        "wave_ends": table.wave_ends,
        "bounds": bounds,
        "sizes": table.sizes,
        "pending": np.diff(bounds),
        "sums": np.empty(bounds[-1]),
        "roots": np.empty(len(table.sizes)),
    }


def _roots(batch: ParamBatch, squares: Tensor, values: Floats) -> dict[str, Array]:
    """Bring the rows' means up to date, given sums of squares; return what rules divide by."""
    kernel, means = batch.kernel, batch.means.numpy()
    sizes = np.array([max(row.share.numel, 1) for row in batch.rows])
    sign, *rule_scalars = values.T
    known = dict(zip(kernel.scalar_names, rule_scalars, strict=False))
    means[:], mean_squares = bind(kernel.mean_square, np)(
        means, squares.cpu().numpy() * sign**2 / sizes, *map(known.get, kernel.mean_scalars)
    )
    return {"roots": np.sqrt(mean_squares)}


def _sum_afresh(batch: ParamBatch, table: CpuTable, stored: Integers) -> None:
    """Sum the slots of the rows whose sum has taken in so many replacements."""
    if not keeps_sum(batch):
        return
    due = (stored >= 0) & (batch.replacements.numpy() % RESUM_EVERY == 0)
    if not due.any():
        return
    find_slots(batch, table, product(np.flatnonzero(due).tolist(), range(batch.capacity)))
    sums = np.ascontiguousarray(table.tensors[:, -1])
    kernel = slot_kernel(table.formats.wide)
    _run(kernel, table, chunks=table.chunks[due[table.chunks[:, 0]]], tensors=sums)
