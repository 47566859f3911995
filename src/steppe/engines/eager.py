"""Plain torch: any device, any layout, differentiable, DTensor. The rule runs on whole tensors."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from steppe import rules
from steppe.engines.bind import bind
from steppe.engines.eager_storage import (
    fresh_sum,
    gradient,
    load,
    slot_sum,
    store,
    store_param,
    store_where,
    widened,
)
from steppe.engines.kernel import (
    BIRTHS,
    KEYS,
    MEAN,
    REPLACEMENTS,
    RESUM_EVERY,
    SLOT_SUM,
    Buffer,
    Kernel,
    slot_name,
)
from steppe.engines.plan import Batch, Priority, Row
from steppe.engines.scalars import Scalar, high_precision
from steppe.engines.scalars import scalars as scalars_of

name = "eager"
reads_amp = False


def objection(batch: Batch) -> str | None:
    """Return why this engine cannot run the batch: never, it runs all."""
    return None


@torch.no_grad()
def norm(tensors: Iterable[Tensor]) -> Tensor:
    """L2 norm of all tensors together, over every shard, accumulated in float64."""
    norms = [_whole(torch.linalg.vector_norm(high_precision(tensor))) for tensor in tensors]
    joint: Tensor = torch.linalg.vector_norm(torch.stack([x.to(norms[0].device) for x in norms]))
    return joint


def square_norm(batch: Batch) -> Tensor:
    """Return the squared L2 norm of all gradients of the batch, over every shard."""
    return norm(row.grad for row in batch.rows).square()


def step(batch: Batch, priority: Priority) -> None:
    """Advance every row by one step.

    Parameters
    ----------
    batch
        The rows; their ``step`` counts this step already.
    priority
        The norm of all gradients of this step, where a buffer has ``scope="global"``.
    """
    for row, values in zip(batch.rows, scalars_of(batch), strict=True):
        _advance(batch, row, values, priority)


def _advance(batch: Batch, row: Row, values: tuple[Scalar, ...], priority: Priority) -> None:
    kernel = batch.kernel
    factor, *scalars = values
    p, g = widened(row.param), gradient(row) * factor
    state = [load(row, key) for key in kernel.state]
    if kernel.buffer is not None:
        state.append(slot_sum(row))
    if batch.demand.differentiable:
        # What the rule reads is overwritten below, and backward still needs it.
        p, state = p.clone(), [value.clone() for value in state]
    if kernel.mean_square is not None:
        scalars.append(_rms(kernel, row, g, scalars))

    new_p, *results = bind(kernel.rule, torch)(p, g, *state, *scalars)

    if kernel.buffer is not None:
        item = results.pop()
        if row.capacity:
            shared = priority if row.group["scope"] == "global" else None
            _remember(batch, kernel.buffer, row, item, norm([g]) if shared is None else shared)
    for stream, (key, value) in enumerate(zip(kernel.state, results, strict=True), start=1):
        store(row, key, value, stream)
    store_param(row, new_p)


def _remember(
    batch: Batch, buffer: Buffer, row: Row, item: Tensor, priority: Tensor | float
) -> None:
    remember = _remember_on_device if batch.on_device else _remember_on_host
    remember(buffer, row, item, priority, 1 + len(batch.kernel.state))


def _remember_on_host(
    buffer: Buffer, row: Row, item: Tensor, priority: Tensor | float, stream: int
) -> None:
    state = row.state
    keys, births = state[KEYS].numpy(), state[BIRTHS].numpy()
    mask, keys[:], births[:] = bind(buffer.remember, np)(
        keys,
        births,
        np.arange(row.capacity),
        float(priority),
        state["step"].item(),
        row.group["priority_decay"],
    )
    if not mask.any():
        return
    state[REPLACEMENTS] += 1
    name = slot_name(int(mask.argmax()))
    is_due = state[REPLACEMENTS].item() % RESUM_EVERY == 0
    if SLOT_SUM in state and not is_due:
        total = row.part(SLOT_SUM)
        total.copy_(rules.swap(total, row.part(name), item))
    store(row, name, item, stream)
    if SLOT_SUM in state and is_due:
        row.part(SLOT_SUM).copy_(fresh_sum(row))


def _remember_on_device(
    buffer: Buffer, row: Row, item: Tensor, priority: Tensor | float, stream: int
) -> None:
    """Touch every slot, so that nothing is read back; the sum is then always afresh."""
    state, device = row.state, row.param.device
    mask, keys, births = bind(buffer.remember, torch)(
        state[KEYS],
        state[BIRTHS],
        torch.arange(row.capacity, device=device),
        torch.as_tensor(priority, device=device),
        state["step"].to(device, state[BIRTHS].dtype),
        row.group["priority_decay"],
    )
    state[KEYS].copy_(keys)
    state[BIRTHS].copy_(births)
    state[REPLACEMENTS].add_(mask.any())
    for i in range(row.capacity):
        store_where(row, slot_name(i), mask[i], item, stream)
    if SLOT_SUM in state:
        row.part(SLOT_SUM).copy_(fresh_sum(row))


def _rms(kernel: Kernel, row: Row, g: Tensor, scalars: list[Scalar]) -> Tensor:
    """Bring the row's mean up to date; return what the rule is to divide by."""
    assert kernel.mean_square is not None
    known = dict(zip(kernel.scalar_names, scalars, strict=False))
    mean, square = row.state[MEAN].clone(), mean_of(high_precision(g).square())
    mean, mean_square = bind(kernel.mean_square, torch)(
        mean, square, *map(known.get, kernel.mean_scalars)
    )
    row.state[MEAN].copy_(mean)
    rms: Tensor = mean_square.sqrt()
    return rms


def mean_of(values: Tensor) -> Tensor:
    """Mean over the whole tensor, over every shard, accumulated in float64."""
    return _whole(high_precision(values).sum() / max(values.numel(), 1))


def _whole(value: Tensor) -> Tensor:
    """Add up what the shards of a DTensor hold; a plain tensor is whole."""
    whole: Tensor = value.full_tensor() if hasattr(value, "full_tensor") else value
    return whole
