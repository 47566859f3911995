"""Numba: one parallel loop over all tensors of a batch, at the speed of memory."""

from dataclasses import dataclass
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
    settle_kernel,
    slot_kernel,
    update_kernel,
)
from steppe._engines.cpu.table import (
    CpuTable,
    address_of,
    find_slots,
    fixed_addresses,
    keeps_sum,
    new_table,
    refresh,
    state_objection,
    table_of,
)
from steppe._engines.cpu.templates import ARGUMENTS
from steppe._shared.array_types import Array, Flags, Floats, Integers

name = "cpu"
reads_amp = False

# Integers in a cache line.
_LINE = 8

_NONE: Integers = np.empty(0, dtype=np.int64)


@dataclass
class Outlook:
    """What decides whether a step's items are remembered.

    Attributes
    ----------
    norms
        The norms of the step's gradients.
    goes_by_own
        Whether each row goes by the norm of its own gradient.
    squares, unscale
        The sums of the squares here, where one does; and what gradients are multiplied by.
    steps, decay
        Each row's step count, and what its keys are multiplied by.
    """

    norms: Norms
    goes_by_own: Flags
    squares: Floats
    unscale: float
    steps: Floats
    decay: Floats


@dataclass
class Pending:
    """What a step has left for the next one to store.

    Attributes
    ----------
    stored
        The slot of each row that takes the step's item, -1 where there is none.
    values, lines
        The step's scalars, see :func:`steppe._engines.base.scalars.table`.
    outlook
        What decides on ``stored``; None once it is decided.
    """

    stored: Integers
    values: Floats
    lines: Integers
    outlook: Outlook | None = None

    @property
    def arrays(self) -> dict[str, Array]:
        """What a kernel is given of it."""
        return {"stored": self.stored, "past_table": self.values, "past_lines": self.lines}


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
    sums: Floats | None = batch.cache.get("sums")
    if sums is None:
        sums = np.empty(len(table.chunks))
        gradients = np.ascontiguousarray(table.tensors[:, 1])
        _run(norm_kernel(table.formats.param), table, tensors=gradients, sums=sums)
    return _by_row(table, sums)


def defers(batch: ParamBatch) -> bool:
    """Whether a step finds its gradients' norm by itself, and stores in the next one."""
    return table_of(batch).formats.defers(batch.kernel)


def step(batch: ParamBatch, norms: Norms) -> None:
    """Advance every row of a batch that does not defer by one step."""
    table, buffer = table_of(batch), batch.kernel.buffer
    values, lines = scalars.table(batch)
    arrays = {"lines": lines, "table": values}
    if batch.kernel.mean_square is not None:
        squares = norms.squares(batch)
        arrays |= _phases(batch) if squares is None else _roots(batch, squares, values[lines])
    if buffer is None:
        _advance(batch, **arrays)
        return
    stored = _remember(batch, _outlook(batch, norms)) if batch.capacity else _NONE
    _find_stored(batch, table, stored)
    _advance(batch, stored=stored, **arrays)
    _sum_afresh(batch, table, _due(batch, stored))


def update(batch: ParamBatch) -> None:
    """Advance every row of a batch that defers, but for what this step remembers."""
    table = table_of(batch)
    values, lines = scalars.table(batch)
    nothing = np.full(len(batch.rows), -1)
    past = _pending(batch) or Pending(nothing, values, lines)
    _find_stored(batch, table, past.stored)
    sums = np.empty(len(table.chunks))
    _advance(batch, lines=lines, table=values, sums=sums, **past.arrays)
    batch.cache |= {"sums": sums, "pending": Pending(nothing, values, lines)}


def defer(batch: ParamBatch, norms: Norms) -> None:
    """Leave it to the next step to decide what this one remembers, and to store it.

    Where the norm is that of all processes, nobody waits for the slowest of them meanwhile.
    """
    pending = _pending(batch)
    assert pending is not None
    if batch.capacity:
        pending.outlook = _outlook(batch, norms)


def decide(batch: ParamBatch) -> None:
    """Decide what the last step remembers; what cannot wait for the next one's pass is stored."""
    pending = _pending(batch)
    if pending is None or pending.outlook is None:
        return
    due = _conclude(batch, pending)
    _store_pending(batch, table_of(batch), due)
    _sum_afresh(batch, table_of(batch), due)


def settle(batch: ParamBatch) -> None:
    """Store at once what the last step has left to the next one.

    Raises
    ------
    RuntimeError
        The state has been exchanged for one that this engine cannot run.
    """
    pending = _pending(batch)
    if pending is None:
        return
    due = _conclude(batch, pending)
    if (pending.stored < 0).all():
        return
    fixed, table = fixed_addresses(batch), table_of(batch)
    if fixed[1:] != table.fixed[1:]:
        for row in batch.rows:
            if found := state_objection(batch, row):
                raise RuntimeError(f"a momentum could not be stored: {found}")
        table = new_table(batch, fixed)
    _store_pending(batch, table, pending.stored >= 0)
    _sum_afresh(batch, table, due)


def _pending(batch: ParamBatch) -> Pending | None:
    return batch.cache.get("pending")


def _conclude(batch: ParamBatch, pending: Pending) -> Flags:
    """Enter the last step into the books; return which rows' slots are to be summed afresh."""
    if pending.outlook is None:
        return np.zeros(len(batch.rows), dtype=np.bool_)
    pending.stored, pending.outlook = _remember(batch, pending.outlook), None
    return _due(batch, pending.stored)


def _store_pending(batch: ParamBatch, table: CpuTable, rows: Flags) -> None:
    """Do for some rows what the next step would do."""
    pending = _pending(batch)
    if pending is None or not rows.any():
        return
    _find_stored(batch, table, np.where(rows, pending.stored, -1))
    kernel = settle_kernel(batch.kernel, table.formats)
    _run(kernel, table, chunks=table.chunks[rows[table.chunks[:, 0]]], **pending.arrays)
    pending.stored[rows] = -1


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
    if "table" in arrays or "past_table" in arrays:
        values["line_width"] = arrays["table" if "table" in arrays else "past_table"].shape[1]
    if "wave_ends" in arrays:
        values["waves"] = len(arrays["wave_ends"])
    arguments = np.array([*map(values.get, ARGUMENTS, addresses.arguments)], dtype=np.int64)
    openmp.run(kernel, address_of(arguments))


# What a step needs


def _by_row(table: CpuTable, sums: Floats) -> Floats:
    """Add up the chunks of each row, in their order."""
    rows = len(table.tensors)
    return np.bincount(table.chunks[:, 0], weights=sums, minlength=rows).astype(np.float64)


def _outlook(batch: ParamBatch, norms: Norms) -> Outlook:
    """Put down what the decision goes by: options and step counts may change before it is made."""
    members, group_of_row = scalars.groups(batch)
    goes_by_own = np.array([group["scope"] == "tensor" for group in members])[group_of_row]
    squares = _square_sums(batch) if goes_by_own.any() else np.zeros(len(batch.rows))
    decay = scalars.column(batch, "priority_decay")
    steps = batch.steps.numpy().copy()
    return Outlook(norms, goes_by_own, squares, batch.unscale, steps, decay)


def _priorities(batch: ParamBatch, outlook: Outlook) -> Floats:
    """Return the norm of all gradients, and in its place of those that go by their own."""
    own = outlook.norms.squares(batch)
    squares = outlook.squares if own is None else own.cpu().numpy()
    shared = 0.0 if outlook.goes_by_own.all() else float(outlook.norms.whole())
    return np.where(outlook.goes_by_own, np.sqrt(squares) * outlook.unscale, shared)


def _remember(batch: ParamBatch, outlook: Outlook) -> Integers:
    """Enter a step into the books; return the slot to store in, -1 where there is none."""
    keys, births = batch.keys.numpy().T, batch.births.numpy().T
    assert batch.kernel.buffer is not None
    mask, keys[:], births[:] = bind(batch.kernel.buffer.remember, np)(
        keys,
        births,
        np.arange(batch.capacity)[:, None],
        _priorities(batch, outlook),
        outlook.steps,
        outlook.decay,
    )
    is_new = mask.any(0)
    batch.replacements.numpy()[is_new] += 1
    return np.where(is_new, mask.argmax(0), -1)


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


def _due(batch: ParamBatch, stored: Integers) -> Flags:
    """Return which rows' slots are to be summed afresh after this step."""
    if not keeps_sum(batch):
        return np.zeros(len(batch.rows), dtype=np.bool_)
    due: Flags = (stored >= 0) & (batch.replacements.numpy() % RESUM_EVERY == 0)
    return due


def _sum_afresh(batch: ParamBatch, table: CpuTable, due: Flags) -> None:
    """Sum the slots of the rows that are due."""
    if not due.any():
        return
    find_slots(batch, table, product(np.flatnonzero(due).tolist(), range(batch.capacity)))
    sums = np.ascontiguousarray(table.tensors[:, -1])
    kernel = slot_kernel(table.formats.wide)
    _run(kernel, table, chunks=table.chunks[due[table.chunks[:, 0]]], tensors=sums)
