"""Pack the step counts of a batch's parameters into one tensor, and so their buffers' keys.

Reading or changing them for all parameters is then one operation. The plan packs a new batch;
dispatch counts its steps, and counts back where Ctrl-C or an error has stopped a step; engines read
the packed tensors.
"""

from copy import copy
from itertools import compress

import numpy as np
import torch
from torch import Tensor

from steppe._engines.base.batch import PACKED, ParamBatch, nothing
from steppe._shared.array_types import Flags


def pack(batch: ParamBatch) -> None:
    """Pack step counts; on the CPU also what else the rows have of :data:`PACKED`.

    Each packed tensor has shape (rows, …). The tensors in the state become views of it, except
    those in shared memory, which each step copies here and back. Where some step counts lie on a
    device, as after a step with a GradScaler, all are moved there. Step counts in float32, as old
    checkpoints have them, become float64: float32 cannot count beyond 2²⁴.
    """
    is_packed = batch.device.type == "cpu" and not batch.request.differentiable
    for name, attribute in PACKED.items():
        if name not in batch.rows[0].state or (name != "step" and not is_packed):
            continue
        parts = [row.state[name] for row in batch.rows]
        if any(map(_is_shared, parts)):
            batch.copied[attribute], batch.is_gathered = parts, True
        setattr(batch, attribute, _stacked(parts))
        if attribute not in batch.copied:
            # Only the storage moves, not the tensor: a state_dict taken before stays the live one.
            for part, view in zip(parts, getattr(batch, attribute).unbind(), strict=True):
                part.data = view


def _is_shared(tensor: Tensor) -> bool:
    """Whether a tensor lies in memory that other processes look at."""
    return tensor.device.type == "cpu" and tensor.untyped_storage().is_shared()


def _stacked(parts: list[Tensor]) -> Tensor:
    device = next((part.device for part in parts if part.device.type != "cpu"), None)
    stacked = torch.stack([part.to(device) for part in parts])
    is_short = stacked.dtype == torch.float32 and stacked.device.type != "mps"
    return stacked.double() if is_short else stacked


def pick(batch: ParamBatch, is_picked: Flags) -> ParamBatch:
    """Return a batch of the rows that have gradients, by one flag for each row."""
    assert batch.held is not None
    part = copy(batch)
    part.parent, part.is_gathered, part.cache = batch, True, {}
    part.rows = [*compress(batch.rows, is_picked)]
    part.params = [*compress(batch.params, is_picked)]
    part.picked = torch.from_numpy(np.flatnonzero(is_picked))
    part.indices, part.sizes = batch.indices[is_picked], batch.sizes[is_picked]
    groups, part.group_of_row = np.unique(batch.group_of_row[is_picked], return_inverse=True)
    part.groups = [batch.groups[i] for i in groups]
    part.note_norms()
    part.copied = {name: [*compress(tensors, is_picked)] for name, tensors in batch.copied.items()}
    part.held = batch.held.pick(is_picked)
    for attribute in PACKED.values():
        setattr(part, attribute, nothing())
    return part


def gather(batch: ParamBatch) -> None:
    """Fill the packed tensors of a batch of picked rows, or of rows in shared memory."""
    for attribute in PACKED.values():
        _gather(batch, attribute)


def count(batch: ParamBatch) -> None:
    """Raise the step counts in the state by 1, and note that no row has been updated yet."""
    if batch.request.capturable:
        steps = [row.state["step"] for row in batch.rows]
        batch.advanced = 0
        torch._foreach_add_(steps, 1.0)
        return
    batch.steps += 1.0
    batch.advanced = 0
    _scatter(batch, "steps")


def uncount(batch: ParamBatch) -> None:
    """Lower the step counts of those rows again that an interrupted step has not advanced."""
    if batch.request.capturable:
        if late := batch.rows[batch.advanced :]:
            torch._foreach_sub_([row.state["step"] for row in late], 1.0)
        return
    batch.steps[batch.advanced :] -= 1.0
    if batch.is_gathered:
        _scatter(batch, "steps")


def scatter(batch: ParamBatch) -> None:
    """Copy packed tensors that are no views of the state back into it, after an engine's step."""
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
    if attribute in batch.copied:
        for tensor, value in zip(batch.copied[attribute], own.unbind(), strict=True):
            tensor.copy_(value)
    target = _lent(batch, attribute)
    if target is not None:
        target.index_copy_(0, batch.picked.to(target.device), own.to(target.device))


def _lent(batch: ParamBatch, attribute: str) -> Tensor | None:
    """Return the parent's packed tensor that the batch has some rows of, if there is one."""
    if batch.parent is None or attribute in batch.copied:
        return None
    found: Tensor = getattr(batch.parent, attribute)
    return found if found.numel() else None
