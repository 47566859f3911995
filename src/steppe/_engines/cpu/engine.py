"""The CPU engine's face for dispatch: one parallel loop over all tensors of a batch, by Numba.

Each number is read from memory and written back once.
"""

import os

import numpy as np
import torch
from numba.core import config
from torch import Tensor

from steppe._engines.base import packing, scalars
from steppe._engines.base.batch import ParamBatch
from steppe._engines.base.bind import bind
from steppe._engines.base.method import RESUM_EVERY
from steppe._engines.base.norms import Norms
from steppe._engines.cpu import openmp
from steppe._engines.cpu.compile_cache import norm_kernel, slot_kernel, update_kernel
from steppe._engines.cpu.table import (
    CpuTable,
    Launch,
    new_table,
    note_addresses,
    state_objection,
)
from steppe._engines.cpu.vector_width import wide_vectors
from steppe._shared.array_types import Flags, Floats

name = "cpu"
reads_amp = False


def objection(batch: ParamBatch) -> str | None:
    """Return why this engine cannot run the batch, or None if it can."""
    if batch.device.type != "cpu":
        return f"parameters lie on {batch.device}"
    if batch.request.capturable or batch.request.differentiable:
        return "a capturable or differentiable step is plain torch's"
    if config.DISABLE_JIT:  # type: ignore[attr-defined]
        return "NUMBA_DISABLE_JIT switches the compiler off"
    return batch.tensor_objection(state_objection)


def prepare(batch: ParamBatch) -> None:
    """Take note of where the tensors of this step lie, and compile what is to run on them.

    To compile takes seconds, in which a user may interrupt the step.
    """
    table: CpuTable | None = batch.cache.get("cpu")
    if table is None:
        table = batch.cache["cpu"] = new_table(batch)
    elif batch.held is not None and table.facts is not batch.held.facts:
        note_addresses(batch, table)
    table.gradients[:] = table.tensors[:, 1] = batch.grad_addresses
    threads = openmp.threads(torch.get_num_threads(), os.getpid())
    if table.threads is not threads:
        table.use(threads)
    if not table.launches:
        table.launches = _launches(batch, table)


def square_sums(batch: ParamBatch) -> Tensor:
    """Return the sum of the squared gradient of each row here, and last that of all."""
    sums = _square_sums(batch)
    return torch.from_numpy(np.append(sums, sums.sum()))


def _square_sums(batch: ParamBatch) -> Floats:
    """Return the sum of the squared gradient of each row, in float64 and a fixed order."""
    table: CpuTable = batch.cache["cpu"]
    if "square_sums" not in table.launches:
        table.launches["square_sums"] = _norm_launch(batch, table)
    table.counters.fill(0)
    table.launches["square_sums"].run()
    by_row = np.bincount(table.chunks[:, 0], weights=table.sums, minlength=len(table.sizes))
    return by_row.astype(np.float64)  # without chunks they are integers


def step(batch: ParamBatch, norms: Norms) -> None:
    """Advance every row of the batch by one step.

    Each file that takes part is entered once, one after the other: norms, scalars, rules. What
    comes between them and the kernel is therefore done here, and not in functions.
    """
    method, table = batch.method, batch.cache["cpu"]
    priorities = _priorities(batch, norms) if batch.capacity else None
    squares = None if method.mean_square is None else norms.squares(batch)
    decays = scalars.column(batch, "priority_decay") if batch.capacity else None
    values, table.lines[:] = scalars.table(batch)
    table.table[: len(values)] = values
    table.identities[:, 1] = steps = batch.steps.numpy()
    table.pending[:] = table.chunk_counts
    means = remembered = due = None
    if squares is not None:
        means, table.roots[:] = _means_and_roots(batch, squares, values[table.lines])
    if method.buffer is not None and priorities is not None:
        keys, births = batch.keys.numpy().T, batch.births.numpy().T
        slots = np.arange(batch.capacity)[:, None]
        mask, *remembered = bind(method.buffer.remember, np)(
            keys, births, slots, priorities, steps, decays
        )
        is_new, replacements = mask.any(0), batch.replacements.numpy()
        table.stored[:] = np.where(is_new, mask.argmax(0), -1)
        if batch.keeps_sum:
            due = is_new & ((replacements + 1) % RESUM_EVERY == 0)
    is_last = not batch.is_gathered and (due is None or not due.any())
    table.counters.fill(0)
    update, count = table.launches["update"].run, len(batch.rows)
    # Ctrl-C is raised at calls, of which there is none until the kernel runs: means, what a buffer
    # remembers, and that rows have advanced, is written if and only if it does.
    batch.advanced = count
    if means is not None:
        table.means[:] = means
    if remembered is not None:
        keys[:], births[:] = remembered
        replacements[is_new] += 1
    try:
        update()
        if not is_last:
            _finish(batch, table, due)
    except BaseException:
        # Ctrl-C during the kernel is raised when it has ended, and all rows have been updated.
        _finish(batch, table, due)
        raise


def _finish(batch: ParamBatch, table: CpuTable, due: Flags | None) -> None:
    """Do what comes after the update; done twice, it does the same."""
    if due is not None and due.any():
        _sum_slots(batch, table, due)
    if batch.is_gathered:
        packing.scatter(batch)


def _launches(batch: ParamBatch, table: CpuTable) -> dict[str, Launch]:
    """Return what runs the kernels of a step on the table's threads; compile them if need be."""
    launches = {"update": table.prepare(update_kernel(batch.method, table.formats, wide_vectors()))}
    if batch.capacity:
        launches["square_sums"] = _norm_launch(batch, table)
    if batch.keeps_sum:
        slot_kernel(table.formats.wide)
    return launches


def _norm_launch(batch: ParamBatch, table: CpuTable) -> Launch:
    compiled = norm_kernel(table.formats.grad, table.formats.norm_by_blocks(batch.method))
    return table.prepare(compiled, tensors=table.gradients)


def _priorities(batch: ParamBatch, norms: Norms) -> Floats:
    """Return the norm of all gradients, and in its place of those that go by their own."""
    if not batch.needs_tensor_norm:
        return np.full(len(batch.rows), float(norms.whole()))
    is_own = np.array([group["scope"] == "tensor" for group in batch.groups])[batch.group_of_row]
    own = _square_sums(batch) if batch.shard_group is None else None
    whole = float(norms.whole()) if batch.needs_global_norm else 0.0
    if own is None:
        squares = norms.squares(batch)
        assert squares is not None
        own = squares.cpu().numpy()
    return np.where(is_own, np.sqrt(own) * batch.unscale, whole)


def _means_and_roots(batch: ParamBatch, squares: Tensor, values: Floats) -> tuple[Floats, Floats]:
    """Return the means of sharded rows in this step, given sums of squares, and their roots."""
    method = batch.method
    sizes = np.array([max(row.shard.numel, 1) for row in batch.rows])
    sign, *rule_scalars = values.T
    known = dict(zip(method.scalar_names, rule_scalars, strict=False))
    means, mean_squares = bind(method.mean_square, np)(
        batch.means.numpy(),
        squares.cpu().numpy() * sign**2 / sizes,
        *map(known.get, method.mean_scalars),
    )
    return means, np.sqrt(mean_squares)


def _sum_slots(batch: ParamBatch, table: CpuTable, due: Flags) -> None:
    """Sum the slots of the rows afresh whose sum has taken in so many replacements."""
    chunks = table.chunks[due[table.chunks[:, 0]]]
    sums = np.ascontiguousarray(table.tensors[:, -1])
    launch = table.prepare(slot_kernel(table.formats.wide), chunks=chunks, tensors=sums)
    table.counters.fill(0)
    launch.run()
