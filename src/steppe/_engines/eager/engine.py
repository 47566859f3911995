"""The eager engine: the rule on whole tensors, in plain torch.

It takes what fused engines do not: any device and layout, differentiable steps, DTensors. Dispatch
falls back on it, and tests compare the other engines with it.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from steppe import rules
from steppe._engines.base.batch import ParamBatch
from steppe._engines.base.bind import bind
from steppe._engines.base.method import (
    BIRTHS,
    KEYS,
    MEAN,
    REPLACEMENTS,
    RESUM_EVERY,
    SLOT_SUM,
    Buffer,
    Method,
    slot_name,
)
from steppe._engines.base.norms import Norms, square_sum
from steppe._engines.base.param_row import ParamRow
from steppe._engines.base.scalars import Scalar
from steppe._engines.base.scalars import scalars as scalars_of
from steppe._engines.eager.codecs import (
    fresh_sum,
    load_param,
    load_state,
    slot_sum,
    store_param,
    store_state,
    store_where,
    widened,
)

Write = Callable[[], object]

name = "eager"
reads_amp = False


def objection(batch: ParamBatch) -> str | None:
    """Return why this engine cannot run the batch: never, it runs all."""
    return None


def prepare(batch: ParamBatch) -> None:
    """Take note of nothing: torch finds its tensors."""


@torch.no_grad()
def square_sums(batch: ParamBatch) -> Tensor:
    """Return the sum of the squared gradient of each row here, and last that of all."""
    sums = torch.stack(list(map(square_sum, batch.grads)))
    return torch.cat([sums, sums.sum(0, keepdim=True)])


def step(batch: ParamBatch, norms: Norms) -> None:
    """Advance every row by one step.

    Parameters
    ----------
    batch
        The rows; their ``step`` counts this step already.
    norms
        Those of this step's gradients.
    """
    squares = norms.squares(batch)
    lines = zip(batch.rows, batch.grads, scalars_of(batch), strict=True)
    for i, (row, grad, values) in enumerate(lines):
        _advance(batch, row, grad, values, norms, None if squares is None else squares[i])


def _advance(
    batch: ParamBatch,
    row: ParamRow,
    grad: Tensor,
    values: tuple[Scalar, ...],
    norms: Norms,
    square: Tensor | None,
) -> None:
    method = batch.method
    factor, *scalars = values
    p, g = load_param(row), widened(grad) * factor
    state = [load_state(row, key) for key in method.state]
    if method.buffer is not None:
        state.append(slot_sum(row))
    if batch.request.differentiable:
        # What the rule reads is overwritten below, and backward still needs it.
        p, state = p.clone(), [value.clone() for value in state]

    def own_square() -> Tensor:
        return square_sum(g) if square is None else square * factor**2

    writes: list[Write] = []
    if method.mean_square is not None:
        mean, rms = _mean_and_rms(method, row, own_square(), scalars)
        writes.append(partial(row.state[MEAN].copy_, mean))
        scalars.append(rms)

    new_p, *results = bind(method.rule, torch)(p, g, *state, *scalars)
    if method.buffer is not None:
        item = results.pop()
        if row.capacity:
            is_shared = row.group["scope"] == "global"
            priority = norms.whole() if is_shared else own_square().detach().sqrt()
            writes += _remember(batch, method.buffer, row, item, priority)
    for stream, (key, value) in enumerate(zip(method.state, results, strict=True), start=1):
        writes.append(partial(store_state, row, key, value, stream))
    writes.append(partial(store_param, row, new_p))

    # All that may fail has been done: from here on the row changes. Ctrl-C is raised at calls and
    # where a loop turns back: not between this and the first write.
    batch.advanced += 1
    try:
        for write in writes:
            write()
    except BaseException:
        # None reads what another has written, but for a sum afresh, which comes after its slots:
        # taken again, all of them leave the row as if nothing had interrupted it.
        for write in writes:
            write()
        raise


def _remember(
    batch: ParamBatch, buffer: Buffer, row: ParamRow, item: Tensor, priority: Tensor | float
) -> list[Write]:
    remember = _remember_on_device if batch.on_device else _remember_on_host
    return remember(buffer, row, item, priority, 1 + len(batch.method.state))


def _remember_on_host(
    buffer: Buffer, row: ParamRow, item: Tensor, priority: Tensor | float, stream: int
) -> list[Write]:
    """Return what stores the step's item in the slot that takes it, if one does."""
    state = row.state
    keys, births = state[KEYS].numpy(), state[BIRTHS].numpy()
    mask, new_keys, new_births = bind(buffer.remember, np)(
        keys,
        births,
        np.arange(row.capacity),
        float(priority),
        state["step"].item(),
        row.group["priority_decay"],
    )
    writes: list[Write] = [
        partial(np.copyto, keys, new_keys),
        partial(np.copyto, births, new_births),
    ]
    if not mask.any():
        return writes
    replacements = state[REPLACEMENTS] + 1
    name = slot_name(int(mask.argmax()))
    writes.append(partial(state[REPLACEMENTS].copy_, replacements))
    is_due = replacements.item() % RESUM_EVERY == 0
    if SLOT_SUM in state and not is_due:
        total = row.part(SLOT_SUM)
        writes.append(partial(total.copy_, rules.swap(total, row.part(name), item)))
    writes.append(partial(store_state, row, name, item, stream))
    if SLOT_SUM in state and is_due:
        writes.append(partial(_sum_afresh, row))
    return writes


def _remember_on_device(
    buffer: Buffer, row: ParamRow, item: Tensor, priority: Tensor | float, stream: int
) -> list[Write]:
    """Touch every slot, so that nothing is read back; the sum is then always afresh."""
    state, device = row.state, row.param.device
    mask, keys, births = bind(buffer.remember, torch)(
        state[KEYS],
        state[BIRTHS],
        torch.arange(row.capacity, device=device),
        torch.as_tensor(priority, dtype=state[KEYS].dtype, device=device),
        state["step"].to(device, state[BIRTHS].dtype),
        row.group["priority_decay"],
    )
    writes: list[Write] = [
        partial(state[KEYS].copy_, keys),
        partial(state[BIRTHS].copy_, births),
        partial(state[REPLACEMENTS].copy_, state[REPLACEMENTS] + mask.any()),
        *(
            partial(store_where, row, slot_name(i), mask[i], item, stream)
            for i in range(row.capacity)
        ),
    ]
    if SLOT_SUM in state:
        writes.append(partial(_sum_afresh, row))
    return writes


def _sum_afresh(row: ParamRow) -> None:
    row.part(SLOT_SUM).copy_(fresh_sum(row))


def _mean_and_rms(
    method: Method, row: ParamRow, square: Tensor, scalars: list[Scalar]
) -> tuple[Tensor, Tensor]:
    """Return the row's mean in this step, and what the rule is to divide by."""
    assert method.mean_square is not None
    known = dict(zip(method.scalar_names, scalars, strict=False))
    mean, mean_square = bind(method.mean_square, torch)(
        row.state[MEAN].clone(),
        square / max(row.shard.numel, 1),
        *map(known.get, method.mean_scalars),
    )
    return mean, mean_square.sqrt()
