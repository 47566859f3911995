"""Triton: one launch for the update of all tensors of a batch, at the speed of memory.

Where norms or means of tensors are needed, one launch before it sums squares. Scalars and decisions
are computed inside the kernels, so that nothing is ever read back and CUDA graphs can replay it.
"""

from contextlib import nullcontext
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from steppe._engines.base.batch import ParamBatch
from steppe._engines.base.memory_layout import is_alike
from steppe._engines.base.method import (
    BIRTHS,
    KEYS,
    MEAN,
    REPLACEMENTS,
    SLOT_SUM,
    Function,
    Method,
    slot_name,
)
from steppe._engines.base.norms import Norms
from steppe._engines.base.number_formats import PARAM_ERROR, wide_dtype
from steppe._engines.base.param_row import ParamRow
from steppe._engines.gpu.scalar_program import Program, options, record
from steppe._engines.gpu.table import GpuTable, addresses, amp, capturing, new_table, on, send

name = "gpu"
reads_amp = True

#: Kinds of devices that are taken.
DEVICES = ("cuda",)

_STATE = (torch.float32, torch.bfloat16, torch.uint8, torch.int8)
_BOOKS = {KEYS: torch.float64, BIRTHS: torch.float64, REPLACEMENTS: torch.int64}


def objection(batch: ParamBatch) -> str | None:
    """Return why this engine cannot run the batch, or None if it can."""
    if batch.device.type not in DEVICES:
        return f"parameters lie on {batch.device}"
    if why := _triton_objection():
        return why
    if batch.request.differentiable:
        return "a differentiable step is plain torch's"
    return batch.tensor_objection(_state_objection)


def prepare(batch: ParamBatch) -> None:
    """Bring the batch's table up to date.

    Raises
    ------
    RuntimeError
        A CUDA graph is being captured, and could not count the steps that it replays.
    """
    if capturing() and not batch.request.capturable:
        raise RuntimeError("a step that a CUDA graph captures needs capturable=True")
    found = addresses(batch)
    table: GpuTable | None = batch.cache.get("gpu")
    if table is None or not table.holds(found):
        table = batch.cache["gpu"] = new_table(batch, found)
        table.constants = _constants(batch)


def square_sums(batch: ParamBatch) -> Tensor:
    """Return the sum of the squared gradient of each row here, and last that of all, unscaled."""
    table = _table(batch)
    _reduce(batch, table)
    return table.sums


def step(batch: ParamBatch, norms: Norms) -> None:
    """Advance every row by one step."""
    table, squares = _table(batch), norms.squares(batch)
    if squares is not None:
        table.sums[:-1].copy_(squares)
    elif batch.needs_tensor_norm and not norms.has_whole:
        _reduce(batch, table)
    whole = norms.whole() if batch.needs_global_norm else None
    _update(batch, table, whole)
    batch.advanced = len(batch.rows)
    found_inf = amp(batch)[1]
    if found_inf is not None:
        skipped = found_inf.clamp(max=1.0).reshape(())
        torch._foreach_sub_([row.state["step"] for row in batch.rows], [skipped] * len(batch.rows))


@cache
def _triton_objection() -> str | None:
    try:
        import triton
    except ImportError:
        return "triton is not installed: pip install triton"
    if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 6):
        return f"triton {triton.__version__} is too old: pip install 'triton>=3.6'"
    return None


# Tables


def _table(batch: ParamBatch) -> GpuTable:
    table: GpuTable = batch.cache["gpu"]
    return table


def _state_objection(batch: ParamBatch, row: ParamRow) -> str | None:
    """Say why a parameter's state does not suit; None if it does."""
    param, state = row.param, row.parts
    wide = wide_dtype(param)
    if row.param_format != batch.param_format or row.formats(batch.method) != batch.formats:
        return "parameters or state have changed their format"
    slots = [slot_name(i) for i in range(row.capacity)]
    sums = [SLOT_SUM] if slots and row.part(slots[0]).dtype == wide else []
    errors = [PARAM_ERROR] if row.keeps_error else []
    for part in map(row.part, (*batch.method.state, *slots, *sums, *errors)):
        if part.shape != param.shape or part.dtype not in (*_STATE, wide):
            return "state differs from its parameter in shape or format"
        if not is_alike(part, param):
            return "state differs from its parameter in layout"
    if slots and any(state[key].dtype != dtype for key, dtype in _BOOKS.items()):
        return "the buffer's keys and births are not float64"
    if MEAN in state and state[MEAN].dtype != torch.float64:
        return "the mean of the second moment is not float64"
    on_host = set() if batch.request.capturable else {"step"}
    if any(state[key].device != param.device for key in state.keys() - on_host):
        return "state lies on another device than its parameter"
    return None


# Launches


def _reduce(batch: ParamBatch, table: GpuTable) -> None:
    """Sum the gradients' squares."""
    sent, scale = send(batch, table), amp(batch)[0]
    _launch(
        _kernels().reduce,
        len(table.spans),
        batch.device,
        *(table.rows, sent.lines, sent.options, table.spans),
        *(table.partials, table.sums, table.arrivals, scale),
        *(table.rows.shape[1], sent.options.shape[1], len(batch.rows)),
        PARAM=table.constants["PARAM"],
        ALIGNED=sent.aligned,
    )


def _update(batch: ParamBatch, table: GpuTable, whole: Tensor | float | None) -> None:
    """Advance all rows, given sums of squares, and the norm over all batches, where needed."""
    if isinstance(whole, float):
        whole = torch.tensor(whole, dtype=torch.float64, device="cpu")
    sent = send(batch, table)
    _launch(
        _kernels().update,
        len(table.chunks),
        batch.device,
        *(table.rows, sent.lines, sent.options, table.chunks),
        *(
            table.sums if batch.needs_tensor_norm else None,
            on(whole, batch.device),
            table.arrivals,
        ),
        *(*amp(batch), table.rows.shape[1], sent.options.shape[1]),
        COUNTED=sent.counted_here,
        ALIGNED=sent.aligned,
        **table.constants,
    )


def _launch(
    kernel: Any, programs: int, device: torch.device, *arguments: Any, **constants: Any
) -> None:
    # Without contraction to fused multiply-adds it rounds as plain torch does.
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[(programs,)](*arguments, **constants, num_warps=4, enable_fp_fusion=False)


@cache
def _kernels() -> ModuleType:
    from steppe._engines.gpu import kernels

    return kernels


def _constants(batch: ParamBatch) -> dict[str, Any]:
    """Return what the update is compiled for."""
    method, first = batch.method, batch.rows[0]
    most = max(row.capacity for row in batch.rows)
    program = record(method, first.group)
    return {
        "OPTIONS": len(options(method, first.group)),
        "OPERATIONS": program.operations,
        "LEFT": program.left,
        "RIGHT": program.right,
        "RESULTS": program.results,
        "PARAM": batch.param_format,
        "STATE": batch.formats[: len(method.state)],
        "WIDE": _kernels().WIDE[first.param.dtype == torch.float64],
        "RULE": _bound(method.rule),
        "REMEMBER": None if method.buffer is None else _bound(method.buffer.remember),
        "MEAN_SQUARE": _bound(method.mean_square),
        "IN_MEAN": _in_mean(method, program),
        "SLOT": batch.formats[-1] if most else "float32",
        "SLOTS": max(16, 1 << (most - 1).bit_length()) if most else 0,
        "KEEPS_SUM": SLOT_SUM in first.state and most > 0,
    }


def _in_mean(method: Method, program: Program) -> tuple[int, ...]:
    """Return where among a program's values those lie that the mean takes."""
    names = method.mean_scalars
    return tuple(program.results[method.scalar_names.index(name)] for name in names)


def _bound(function: Function | None) -> Any:
    return None if function is None else _kernels().bound(function)
