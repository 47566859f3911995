"""Plain torch: any device, any layout, differentiable, DTensor. The rule runs on whole tensors."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from steppe import rules
from steppe.engines.bind import bind
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
from steppe.engines.scalars import Scalar, high_precision, scalars

name = "eager"


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


def step(batch: Batch, priority: Tensor | None) -> None:
    """Advance every row by one step.

    Parameters
    ----------
    batch
        The rows; their ``step`` counts this step already.
    priority
        The norm of all gradients of this step, where a buffer has ``scope="global"``.
    """
    for row, values in zip(batch.rows, scalars(batch), strict=True):
        _advance(batch, row, values, priority)


def widened(tensor: Tensor) -> Tensor:
    """In at least float32: half precision is for storage, not for arithmetic."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _advance(batch: Batch, row: Row, values: tuple[Scalar, ...], priority: Tensor | None) -> None:
    kernel = batch.kernel
    p, g = widened(row.param), widened(row.grad)
    g = -g if row.group["maximize"] else g
    state = [row.part(key) for key in kernel.state]
    if kernel.buffer is not None:
        state.append(row.part(SLOT_SUM) if row.capacity else torch.zeros_like(p))
    if batch.demand.differentiable:
        # What the rule reads is overwritten below, and backward still needs it.
        p, state = p.clone(), [value.clone() for value in state]
    if kernel.mean_square is not None:
        square = bind(kernel.mean_square, torch)(p, g, *state, *values)
        values = (*values, root_mean(square))

    new_p, *results = bind(kernel.rule, torch)(p, g, *state, *values)

    if kernel.buffer is not None:
        item = results.pop()
        if row.capacity:
            shared = priority if row.group["scope"] == "global" else None
            _remember(batch, kernel.buffer, row, item, norm([g]) if shared is None else shared)
    for key, value in zip(kernel.state, results, strict=True):
        row.part(key).copy_(value)
    row.param.copy_(new_p)


def _remember(batch: Batch, buffer: Buffer, row: Row, item: Tensor, priority: Tensor) -> None:
    slots = [row.part(slot_name(i)) for i in range(row.capacity)]
    if batch.on_device:
        _remember_on_device(buffer, row, slots, item, priority)
    else:
        _remember_on_host(buffer, row, slots, item, priority)


def _remember_on_host(
    buffer: Buffer, row: Row, slots: list[Tensor], item: Tensor, priority: Tensor
) -> None:
    state = row.state
    keys, births = state[KEYS].numpy(), state[BIRTHS].numpy()
    store, keys[:], births[:] = bind(buffer.remember, np)(
        keys,
        births,
        np.arange(len(slots)),
        priority.item(),
        state["step"].item(),
        row.group["priority_decay"],
    )
    if not store.any():
        return
    state[REPLACEMENTS] += 1
    slot, total = slots[int(store.argmax())], row.part(SLOT_SUM)
    if state[REPLACEMENTS].item() % RESUM_EVERY:
        total.copy_(rules.swap(total, slot, item))
        slot.copy_(item)
    else:
        slot.copy_(item)
        total.copy_(_sum(slots))


def _remember_on_device(
    buffer: Buffer, row: Row, slots: list[Tensor], item: Tensor, priority: Tensor
) -> None:
    """Touch every slot, so that nothing is read back; the sum is then always afresh."""
    state, device = row.state, row.param.device
    store, keys, births = bind(buffer.remember, torch)(
        state[KEYS],
        state[BIRTHS],
        torch.arange(len(slots), device=device),
        priority.to(device),
        state["step"].to(device, state[BIRTHS].dtype),
        row.group["priority_decay"],
    )
    state[KEYS].copy_(keys)
    state[BIRTHS].copy_(births)
    state[REPLACEMENTS].add_(store.any())
    for i, slot in enumerate(slots):
        slot.copy_(torch.where(store[i], item, slot))
    row.part(SLOT_SUM).copy_(_sum(slots))


def _sum(slots: list[Tensor]) -> Tensor:
    total = slots[0].clone()
    for slot in slots[1:]:
        total = total + slot
    return total


def root_mean(square: Tensor) -> Tensor:
    """Root of the mean over the whole tensor, over every shard, accumulated in float64."""
    return _whole(high_precision(square).sum() / max(square.numel(), 1)).sqrt()


def _whole(value: Tensor) -> Tensor:
    """Add up what the shards of a DTensor hold; a plain tensor is whole."""
    whole: Tensor = value.full_tensor() if hasattr(value, "full_tensor") else value
    return whole
