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
            batch.copied[attribute] = parts
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
    )
    gather(part)
    return part


def gather(batch: ParamBatch) -> None:
    """Copy what does not lie side by side to where the engines look for it."""
    for attribute, tensors in batch.copied.items():
        _put(batch, attribute, _stacked(tensors))
    if batch.parent is not None:
        for attribute in _lent(batch):
            source: Tensor = getattr(batch.parent, attribute)
            _put(batch, attribute, source[batch.picked.to(source.device)])


def scatter(batch: ParamBatch) -> None:
    """Copy it back after a step."""
    for attribute, tensors in batch.copied.items():
        for tensor, value in zip(tensors, getattr(batch, attribute).unbind(), strict=True):
            tensor.copy_(value)
    if batch.parent is not None:
        for attribute in _lent(batch):
            target: Tensor = getattr(batch.parent, attribute)
            value = getattr(batch, attribute).to(target.device)
            target.index_copy_(0, batch.picked.to(target.device), value)


def _lent(batch: ParamBatch) -> list[str]:
    """Return the attributes that the batch has of its parent."""
    lent = [name for name in PACKED.values() if name not in batch.copied]
    return [name for name in lent if getattr(batch.parent, name).numel()]


def _put(batch: ParamBatch, attribute: str, value: Tensor) -> None:
    # In place: kernels have noted where it lies.
    own: Tensor = getattr(batch, attribute)
    if own.shape == value.shape and own.device == value.device:
        own.copy_(value)
    else:
        setattr(batch, attribute, value)
