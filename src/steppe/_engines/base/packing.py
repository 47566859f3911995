"""Step counts and buffers' keys side by side, so that reading or changing all is one operation."""

from collections.abc import Sequence

import torch
from torch import Tensor

from steppe._engines.base.batch import PACKED, ParamBatch


def pack(batch: ParamBatch) -> None:
    """Lay step counts side by side; on the CPU what the rows have of :data:`PACKED` too.

    Where some step counts have come to lie on a device, as a GradScaler makes them, all do. Step
    counts of checkpoints before 0.2, in float32, become float64: float32 ends at 2²⁴.
    """
    is_packed = batch.device.type == "cpu" and not batch.request.differentiable
    for name, attribute in PACKED.items():
        if name not in batch.rows[0].state or (name != "step" and not is_packed):
            continue
        parts = [row.state[name] for row in batch.rows]
        if any(part.device.type == "cpu" and part.is_shared() for part in parts):
            batch.copied[attribute], batch.is_gathered = parts, True
        setattr(batch, attribute, _stacked(parts))
        if attribute not in batch.copied:
            # Only the storage moves, not the tensor: a state_dict taken before stays the live one.
            for part, view in zip(parts, getattr(batch, attribute).unbind(), strict=True):
                part.data = view


def _stacked(parts: list[Tensor]) -> Tensor:
    device = next((part.device for part in parts if part.device.type != "cpu"), None)
    stacked = torch.stack([part.to(device) for part in parts])
    is_short = stacked.dtype == torch.float32 and stacked.device.type != "mps"
    return stacked.double() if is_short else stacked


def pick(batch: ParamBatch, rows: Sequence[int]) -> ParamBatch:
    """Return a batch of some of the rows."""
    assert batch.held is not None
    part = ParamBatch(
        batch.request,
        batch.device,
        batch.formats,
        batch.shard_group,
        [batch.rows[i] for i in rows],
        engine=batch.engine,
        parent=batch,
        picked=torch.tensor(rows),
        copied={name: [tensors[i] for i in rows] for name, tensors in batch.copied.items()},
        held=batch.held.pick(rows),
        is_gathered=True,
    )
    gather(part)
    return part


def count(batch: ParamBatch) -> None:
    """Raise the step counts of a gathered batch by 1, here and in the state."""
    _gather(batch, "steps")
    batch.steps += 1.0
    _scatter(batch, "steps")


def gather(batch: ParamBatch) -> None:
    """Copy what does not lie side by side to where the CPU engine looks for it."""
    for attribute in PACKED.values():
        _gather(batch, attribute)


def scatter(batch: ParamBatch) -> None:
    """Copy it back after a step."""
    for attribute in PACKED.values():
        _scatter(batch, attribute)


def _gather(batch: ParamBatch, attribute: str) -> None:
    if attribute in batch.copied:
        found = _stacked(batch.copied[attribute])
    else:
        source = _lent(batch, attribute)
        if source is None:
            return
        found = source[batch.picked.to(source.device)]
    own: Tensor = getattr(batch, attribute)
    if own.shape == found.shape and own.device == found.device:
        own.copy_(found)  # kernels have noted where it lies
    else:
        setattr(batch, attribute, found)


def _scatter(batch: ParamBatch, attribute: str) -> None:
    own: Tensor = getattr(batch, attribute)
    for tensor, value in zip(batch.copied.get(attribute, ()), own.unbind(), strict=False):
        tensor.copy_(value)
    target = _lent(batch, attribute)
    if target is not None:
        target.index_copy_(0, batch.picked.to(target.device), own.to(target.device))


def _lent(batch: ParamBatch, attribute: str) -> Tensor | None:
    """Return the parent's tensor of which the batch has some lines, if there is one."""
    if batch.parent is None or attribute in batch.copied:
        return None
    found: Tensor = getattr(batch.parent, attribute)
    return found if found.numel() else None
