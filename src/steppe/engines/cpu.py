"""Numba: one parallel loop over all tensors of a batch, at the speed of memory."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steppe.engines import scalars, threads
from steppe.engines.bind import bind
from steppe.engines.codegen import ARGUMENTS, Formats
from steppe.engines.kernel import RESUM_EVERY, SLOT_SUM, slot_name
from steppe.engines.kernel_files import (
    Native,
    norm_kernel,
    settle_kernel,
    slot_kernel,
    update_kernel,
)
from steppe.engines.layout import is_alike, param_objection
from steppe.engines.norms import Norms
from steppe.engines.plan import Batch, Row
from steppe.engines.storage import BLOCK, EIGHT_BITS, format_of, scale_name, wide_dtype

name = "cpu"
reads_amp = False

#: Elements that a thread takes at a time: their operands fit into its second-level cache.
CHUNK = 16_384

# Integers in a cache line.
_LINE = 8

# Elements of tensors that are summed up before any is updated.
_WAVE = 64 * CHUNK

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
_NOWHERE = torch.empty(0)
_NONE: Integers = np.empty(0, dtype=np.int64)


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
            values[name] = _address(getattr(self, name))
        self.arguments = [values[name] for name in ARGUMENTS]


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
        The step's scalars, see :func:`steppe.engines.scalars.table`.
    outlook
        What decides on ``stored``; None once it is decided.
    """

    stored: Integers
    values: Floats
    lines: Integers
    outlook: Outlook | None = None

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """What a kernel is given of it."""
        return {"stored": self.stored, "past_table": self.values, "past_lines": self.lines}


def objection(batch: Batch) -> str | None:
    """Return why this engine cannot run the batch, or None if it can."""
    if batch.device.type != "cpu":
        return f"parameters lie on {batch.device}"
    if batch.demand.capturable or batch.demand.differentiable:
        return "a capturable or differentiable step is plain torch's"
    if any(row.state for row in batch.rows):
        return _refresh(batch)
    return next(filter(None, (param_objection(row.param) for row in batch.rows)), None)


def square_sums(batch: Batch) -> Tensor:
    """Return the sum of the squared gradient of each row here, and last that of all."""
    sums = _square_sums(batch)
    return torch.from_numpy(np.append(sums, sums.sum()))


def _square_sums(batch: Batch) -> Floats:
    """Return the sum of the squared gradient of each row, in float64 and a fixed order."""
    table = _table(batch)
    sums: Floats | None = batch.cache.get("sums")
    if sums is None:
        sums = np.empty(len(table.chunks))
        gradients = np.ascontiguousarray(table.tensors[:, 1])
        _run(norm_kernel(table.formats.param), table, tensors=gradients, sums=sums)
    return _by_row(table, sums)


def defers(batch: Batch) -> bool:
    """Whether a step finds its gradients' norm by itself, and stores in the next one."""
    return _table(batch).formats.defers(batch.kernel)


def step(batch: Batch, norms: Norms) -> None:
    """Advance every row of a batch that does not defer by one step."""
    table, buffer = _table(batch), batch.kernel.buffer
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


def update(batch: Batch) -> None:
    """Advance every row of a batch that defers, but for what this step remembers."""
    table = _table(batch)
    values, lines = scalars.table(batch)
    nothing = np.full(len(batch.rows), -1)
    past = _pending(batch) or Pending(nothing, values, lines)
    _find_stored(batch, table, past.stored)
    sums = np.empty(len(table.chunks))
    _advance(batch, lines=lines, table=values, sums=sums, **past.arrays)
    batch.cache |= {"sums": sums, "pending": Pending(nothing, values, lines)}


def defer(batch: Batch, norms: Norms) -> None:
    """Leave it to the next step to decide what this one remembers, and to store it.

    Where the norm is that of all processes, nobody waits for the slowest of them meanwhile.
    """
    pending = _pending(batch)
    assert pending is not None
    if batch.capacity:
        pending.outlook = _outlook(batch, norms)


def decide(batch: Batch) -> None:
    """Decide what the last step remembers; what cannot wait for the next one's pass is stored."""
    pending = _pending(batch)
    if pending is None or pending.outlook is None:
        return
    due = _conclude(batch, pending)
    _store_pending(batch, _table(batch), due)
    _sum_afresh(batch, _table(batch), due)


def settle(batch: Batch) -> None:
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
    fixed, table = _fixed_addresses(batch), _table(batch)
    if fixed[1:] != table.fixed[1:]:
        for row in batch.rows:
            if found := _state_objection(batch, row):
                raise RuntimeError(f"a momentum could not be stored: {found}")
        table = _new_table(batch, fixed)
    _store_pending(batch, table, pending.stored >= 0)
    _sum_afresh(batch, table, due)


def _pending(batch: Batch) -> Pending | None:
    return batch.cache.get("pending")


def _conclude(batch: Batch, pending: Pending) -> Flags:
    """Enter the last step into the books; return which rows' slots are to be summed afresh."""
    if pending.outlook is None:
        return np.zeros(len(batch.rows), dtype=np.bool_)
    pending.stored, pending.outlook = _remember(batch, pending.outlook), None
    return _due(batch, pending.stored)


def _store_pending(batch: Batch, table: Table, rows: Flags) -> None:
    """Do for some rows what the next step would do."""
    pending = _pending(batch)
    if pending is None or not rows.any():
        return
    _find_stored(batch, table, np.where(rows, pending.stored, -1))
    kernel = settle_kernel(batch.kernel, table.formats)
    _run(kernel, table, chunks=table.chunks[rows[table.chunks[:, 0]]], **pending.arrays)
    pending.stored[rows] = -1


def _advance(batch: Batch, **arrays: NDArray[Any]) -> None:
    """Run the kernel that updates all rows."""
    table = _table(batch)
    table.identities[:, 1] = batch.steps.numpy()
    _run(update_kernel(batch.kernel, table.formats), table, **arrays)


def _run(kernel: Native, addresses: Table, **arrays: NDArray[Any]) -> None:
    """Call a kernel with the table's arrays, and these, contiguous, in the place of some."""
    count = threads.count()
    # The counters of two queues for each thread, a cache line each, and that of arrivals.
    arrays["counters"] = np.zeros((2 * count + 1) * _LINE, dtype=np.int64)
    values = {name: _address(array) for name, array in arrays.items()}
    values["arrivals"] = values["counters"] + 8 * 2 * count * _LINE
    values |= {"thread_numbers": threads.numbers(), "threads": count}
    if "chunks" in arrays:
        values["count"] = len(arrays["chunks"])
    if "table" in arrays or "past_table" in arrays:
        values["line_width"] = arrays["table" if "table" in arrays else "past_table"].shape[1]
    if "wave_ends" in arrays:
        values["waves"] = len(arrays["wave_ends"])
    arguments = np.array([*map(values.get, ARGUMENTS, addresses.arguments)], dtype=np.int64)
    threads.run(kernel, _address(arguments))


def _address(array: NDArray[Any]) -> int:
    """Return where an array lies; four times as fast as ``array.ctypes``."""
    address: int = array.__array_interface__["data"][0]
    return address


# Tables


def _table(batch: Batch) -> Table:
    table: Table = batch.cache["cpu"]
    return table


def _refresh(batch: Batch) -> str | None:
    """Bring the batch's table up to date; where a tensor has moved, check it first."""
    fixed = _fixed_addresses(batch)
    table: Table | None = batch.cache.get("cpu")
    if table is None or table.fixed != fixed:
        for row in batch.rows:
            if found := param_objection(row.param) or _state_objection(batch, row):
                return found
        table = batch.cache["cpu"] = _new_table(batch, fixed)
    table.tensors[:, 1] = [
        _gradient_address(row, stride, table.dtype)
        for row, stride in zip(batch.rows, table.strides, strict=True)
    ]
    return None


def _gradient_address(row: Row, stride: tuple[int, ...], dtype: torch.dtype) -> int:
    """Return where a gradient lies; one laid out unlike its parameter is copied."""
    if row.grad.stride() != stride or row.grad.dtype is not dtype:
        row.grad = torch.empty_like(row.param).copy_(row.grad)
    return row.grad.data_ptr()


def _fixed_addresses(batch: Batch) -> list[list[int]]:
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
    if not _keeps_sum(batch):
        slots = _slot_names(batch)
        addresses += [*map(of, slots), *(scales_of(name, batch.formats[-1]) for name in slots)]
    return addresses


def _slot_names(batch: Batch) -> list[str]:
    return [slot_name(i) for i in range(batch.capacity)]


def _keeps_sum(batch: Batch) -> bool:
    """Whether the slots are in full precision: then only those written to need be found."""
    return batch.capacity > 0 and batch.formats[-1] in ("float32", "float64")


def _new_table(batch: Batch, fixed: list[list[int]]) -> Table:
    rows, count = batch.rows, len(batch.kernel.state)
    columns = np.array(fixed, dtype=np.int64).T
    formats = Formats(format_of("", rows[0].param), batch.formats, batch.team is not None)
    cuts = np.concatenate([_chunks(i, row, formats) for i, row in enumerate(rows)])
    slot_width = 0 if _keeps_sum(batch) else batch.capacity
    widths = [1 + count, count, int(batch.kernel.buffer is not None), slot_width]
    tensors, scales, sums, slots, slot_scales = np.split(columns, np.cumsum(widths), axis=1)
    if _keeps_sum(batch):
        slots = np.zeros((len(rows), batch.capacity), dtype=np.int64)
    empty = np.zeros((len(rows), 1), dtype=np.int64)
    return Table(
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


def _chunks(number: int, row: Row, formats: Formats) -> Integers:
    """Cut a row; where blocks matter, as the whole tensor is cut."""
    if formats.sharded and formats.is_noisy:
        first, count, place, block = row.share.cut(CHUNK, BLOCK)
    else:
        size = row.param.numel()
        first = place = np.arange(0, size, CHUNK)
        count, block = np.minimum(CHUNK, size - first), first // BLOCK
    return np.stack([np.full_like(first, number), first, count, place, block], axis=1)


def _state_objection(batch: Batch, row: Row) -> str | None:
    if row.param.dtype != batch.rows[0].param.dtype or row.formats(batch.kernel) != batch.formats:
        return "parameters or state have changed their format"
    slots = _slot_names(batch)
    sums = [SLOT_SUM] if SLOT_SUM in row.state else []
    for name in (*batch.kernel.state, *sums, *slots):
        value = row.part(name)
        if not is_alike(value, row.param):
            return "state differs from its parameter in layout"
        scales = row.parts.get(scale_name(name))
        if value.dtype == torch.uint8 and not _is_scales(scales, row):
            return "the scales of 8-bit state are not one for each block"
    if slots and len({row.part(name).dtype for name in slots}) > 1:
        return "slots differ in number format"
    if slots and _keeps_sum(batch) != bool(sums):
        return "the sum of the slots is kept for slots in full precision only"
    wide = wide_dtype(row.param)
    if sums and {row.part(name).dtype for name in (SLOT_SUM, *slots)} != {wide}:
        return "slots are in another format than their sum is computed in"
    return None


def _is_scales(scales: Tensor | None, row: Row) -> bool:
    return (
        scales is not None
        and scales.shape == (row.share.blocks(BLOCK),)
        and scales.dtype == torch.float32
        and scales.is_contiguous()
    )


# Steps


def _by_row(table: Table, sums: Floats) -> Floats:
    """Add up the chunks of each row, in their order."""
    rows = len(table.tensors)
    return np.bincount(table.chunks[:, 0], weights=sums, minlength=rows).astype(np.float64)


def _outlook(batch: Batch, norms: Norms) -> Outlook:
    """Put down what the decision goes by: options and step counts may change before it is made."""
    goes_by_own = np.array([row.group["scope"] == "tensor" for row in batch.rows])
    squares = _square_sums(batch) if goes_by_own.any() else np.zeros(len(batch.rows))
    decay = scalars.column(batch, "priority_decay")
    steps = batch.steps.numpy().copy()
    return Outlook(norms, goes_by_own, squares, batch.unscale, steps, decay)


def _priorities(batch: Batch, outlook: Outlook) -> Floats:
    """Return the norm of all gradients, and in its place of those that go by their own."""
    own = outlook.norms.squares(batch)
    squares = outlook.squares if own is None else own.cpu().numpy()
    shared = 0.0 if outlook.goes_by_own.all() else float(outlook.norms.whole())
    return np.where(outlook.goes_by_own, np.sqrt(squares) * outlook.unscale, shared)


def _remember(batch: Batch, outlook: Outlook) -> Integers:
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


def _find_stored(batch: Batch, table: Table, stored: Integers) -> None:
    """Find the slots that are stored in; where no sum is kept, all have been found."""
    if _keeps_sum(batch):
        rows = np.flatnonzero(stored >= 0)
        _find_slots(batch, table, zip(rows.tolist(), stored[rows].tolist(), strict=True))


def _find_slots(batch: Batch, table: Table, places: Iterable[tuple[int, int]]) -> None:
    """Bring the addresses of slots, each the row's and its own number, up to date."""
    for i, index in places:
        row, name = batch.rows[i], slot_name(index)
        slot = row.part(name)
        if slot.data_ptr() == table.slots[i, index]:
            continue
        if slot.stride() != table.strides[i] or slot.dtype != row.part(SLOT_SUM).dtype:
            # Somebody has put another tensor in its place.
            fresh = torch.empty_like(row.parts[SLOT_SUM]).copy_(row.parts[name])
            row.parts[name] = fresh
            row.state[name] = row.share.like(fresh)
        table.slots[i, index] = row.part(name).data_ptr()


def _phases(batch: Batch) -> dict[str, NDArray[Any]]:
    """Return what a kernel needs that sums a tensor up before updating it."""
    table = _table(batch)
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


def _roots(batch: Batch, squares: Tensor, values: Floats) -> dict[str, NDArray[Any]]:
    """Bring the rows' means up to date, given sums of squares; return what rules divide by."""
    kernel, means = batch.kernel, batch.means.numpy()
    sizes = np.array([max(row.share.numel, 1) for row in batch.rows])
    sign, *rule_scalars = values.T
    known = dict(zip(kernel.scalar_names, rule_scalars, strict=False))
    means[:], mean_squares = bind(kernel.mean_square, np)(
        means, squares.cpu().numpy() * sign**2 / sizes, *map(known.get, kernel.mean_scalars)
    )
    return {"roots": np.sqrt(mean_squares)}


def _wave_ends(chunks: Integers) -> Integers:
    """Return where groups of whole tensors end, as numbers of chunks, that fit into the cache."""
    row, size = chunks[:, 0], chunks[:, 2]
    before = np.cumsum(size) - size
    wave = before[np.searchsorted(row, row)] // _WAVE
    return np.array([*(1 + np.flatnonzero(np.diff(wave))), len(chunks)])


def _due(batch: Batch, stored: Integers) -> Flags:
    """Return which rows' slots are to be summed afresh after this step."""
    if not _keeps_sum(batch):
        return np.zeros(len(batch.rows), dtype=np.bool_)
    due: Flags = (stored >= 0) & (batch.replacements.numpy() % RESUM_EVERY == 0)
    return due


def _sum_afresh(batch: Batch, table: Table, due: Flags) -> None:
    """Sum the slots of the rows that are due."""
    if not due.any():
        return
    _find_slots(batch, table, product(np.flatnonzero(due).tolist(), range(batch.capacity)))
    sums = np.ascontiguousarray(table.tensors[:, -1])
    kernel = slot_kernel(table.formats.wide)
    _run(kernel, table, chunks=table.chunks[due[table.chunks[:, 0]]], tensors=sums)
