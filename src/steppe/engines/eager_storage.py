"""Load and store parameters and state in any number format, in plain torch."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from steppe.engines import storage, words
from steppe.engines.bind import bind
from steppe.engines.kernel import SLOT_SUM, slot_name
from steppe.engines.plan import Row
from steppe.engines.storage import BLOCK, blocks, format_of, scale_name, wide_dtype

#: Streams of noise: the parameter's, then the state's in the rule's order, then the item's.
PARAM = 0


def widened(tensor: Tensor) -> Tensor:
    """In at least float32: half precision is for storage, not for arithmetic."""
    return tensor.to(wide_dtype(tensor))


def load(row: Row, name: str) -> Tensor:
    """Return the state ``name`` as numbers to compute with, in the parameter's wide format."""
    value = row.part(name)
    if value.dtype != torch.uint8:
        return value.to(torch.promote_types(value.dtype, wide_dtype(row.param)))
    decode = bind(getattr(storage, f"from_{format_of(name, value)}"), words)
    codes = _in_blocks(_in_memory_order(local(value)).long())
    numbers = decode(codes, _scales(row, name)[:, None]).view(-1)
    return _like(_unordered(numbers, local(value)).to(wide_dtype(row.param)), value)


def gradient(row: Row) -> Tensor:
    """Return the gradient to compute with, sharded as its parameter is: others may come along."""
    grad: Any = row.grad
    param: Any = row.param
    if hasattr(param, "to_local") and grad.placements != param.placements:
        grad = grad.redistribute(param.device_mesh, param.placements)
    return widened(grad)


def store(row: Row, name: str, value: Tensor, stream: int) -> None:
    """Write the state ``name`` in its number format; ``stream`` tells its noise from others'."""
    target = row.part(name)
    if target.dtype == torch.bfloat16:
        _store_bfloat16(row, target, value, stream)
    elif target.dtype == torch.uint8:
        _store_8_bits(row, name, value, stream)
    else:
        target.copy_(value)


def store_where(row: Row, name: str, mask: Tensor, value: Tensor, stream: int) -> None:
    """Write the state ``name`` if the 0-dim ``mask`` says so, without reading it back."""
    tensors = [row.part(key) for key in (name, scale_name(name)) if key in row.state]
    before = [tensor.clone() for tensor in tensors]
    store(row, name, value, stream)
    for tensor, old in zip(tensors, before, strict=True):
        tensor.copy_(torch.where(mask, tensor, old))


def store_param(row: Row, value: Tensor) -> None:
    """Write the parameter in its number format; bfloat16 is rounded stochastically."""
    if row.param.dtype == torch.bfloat16 and not row.group["differentiable"]:
        _store_bfloat16(row, row.param, value, PARAM)
    else:
        row.param.copy_(value)


def slot_sum(row: Row) -> Tensor:
    """Return the sum of the slots: the one that is kept, or of low-precision slots a fresh one."""
    if not row.capacity:
        return torch.zeros_like(widened(row.param))
    if SLOT_SUM in row.state:
        return row.part(SLOT_SUM)
    return fresh_sum(row)


def fresh_sum(row: Row) -> Tensor:
    """Sum the slots, in their order."""
    total = load(row, slot_name(0)).clone()
    for i in range(1, row.capacity):
        total = total + load(row, slot_name(i))
    return total


def local(tensor: Tensor) -> Tensor:
    """Return this rank's part of a DTensor, and a plain tensor itself."""
    part: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part


def _store_bfloat16(row: Row, target: Tensor, value: Tensor, stream: int) -> None:
    place = _places(target)
    noise = bind(storage.noise, words)(_offsets(row, stream, place >> 8), place)
    word = bind(storage.to_bfloat16, words)(local(value), noise)
    local(target).copy_(words.number(word << 16))


def _store_8_bits(row: Row, name: str, value: Tensor, stream: int) -> None:
    target = local(row.part(name))
    kind = format_of(name, target)
    numbers = _in_blocks(_in_memory_order(local(value), target))
    largest = bind(storage.size_word, words)(numbers).amax(1)
    scale = bind(getattr(storage, f"scale_{kind}"), words)(largest)
    place = torch.arange(numbers.numel(), device=target.device).view(-1, BLOCK)
    noise = bind(storage.noise, words)(_offsets(row, stream, place >> 8), place)
    codes = bind(getattr(storage, f"to_{kind}"), words)(numbers, (1.0 / scale)[:, None], noise)
    _scales(row, name).copy_(scale)
    target.copy_(_unordered(codes.view(-1), target))


def _scales(row: Row, name: str) -> Tensor:
    """Return the scales of this rank's blocks; other ranks may have more."""
    return local(row.state[scale_name(name)])[: blocks(local(row.param).numel())]


def _offsets(row: Row, stream: int, block: Tensor) -> Tensor:
    step = row.state["step"].to(block.device, torch.int64)
    number = torch.tensor(row.number, device=block.device)
    key = bind(storage.noise_key, words)(number, step)
    offsets: Tensor = bind(storage.noise_offset, words)(key, stream, block)
    return offsets


def _places(tensor: Tensor) -> Tensor:
    """Return where each element lies in its tensor's memory; of a shard, in the whole tensor's."""
    own, offsets = local(tensor), _shard_offsets(tensor)
    place = torch.zeros((), dtype=torch.int64, device=own.device)
    for size, stride, offset in zip(own.shape, tensor.stride(), offsets, strict=True):
        steps = torch.arange(offset, offset + size, device=own.device) * stride
        place = place.unsqueeze(-1) + steps
    return place


def _shard_offsets(tensor: Any) -> tuple[int, ...]:
    """Return where this rank's part begins in the whole tensor, dimension by dimension."""
    if not hasattr(tensor, "to_local"):
        return (0,) * len(tensor.shape)
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    offsets: tuple[int, ...] = compute_local_shape_and_global_offset(
        tensor.shape, tensor.device_mesh, tensor.placements
    )[1]
    return offsets


def _order(tensor: Tensor) -> list[int]:
    strides = tensor.stride()
    return sorted(range(tensor.ndim), key=lambda i: -strides[i])


def no_scales(param: Any) -> Tensor:
    """Return scales of 0 for the blocks of a parameter.

    Ranks have blocks of their own, and each as many scales as the largest shard has blocks: so the
    scales are sharded evenly, and can be gathered and scattered as other state is.
    """
    if not hasattr(param, "to_local"):
        return torch.zeros(blocks(param.numel()), device=param.device)
    from torch.distributed.tensor import DTensor, Replicate, Shard

    largest = list(param.shape)
    for ranks, placement in zip(param.device_mesh.shape, param.placements, strict=True):
        if placement.is_shard():
            largest[placement.dim] = -(-largest[placement.dim] // ranks)
    scales = torch.zeros(blocks(math.prod(largest)), device=param.device)
    placements = [Shard(0) if each.is_shard() else Replicate() for each in param.placements]
    return DTensor.from_local(scales, param.device_mesh, placements, run_check=False)


def _in_memory_order(tensor: Tensor, like: Tensor | None = None) -> Tensor:
    """Return the elements in the order in which those of ``like`` lie in memory."""
    return tensor.permute(_order(tensor if like is None else like)).reshape(-1)


def _unordered(flat: Tensor, like: Tensor) -> Tensor:
    """Return the tensor of which :func:`_in_memory_order` made ``flat``."""
    order = _order(like)
    shape = [like.shape[i] for i in order]
    back = sorted(range(len(order)), key=order.__getitem__)
    return flat[: like.numel()].view(shape).permute(back)


def _in_blocks(flat: Tensor) -> Tensor:
    return pad(flat, (0, -flat.numel() % BLOCK)).view(-1, BLOCK)


def _like(part: Tensor, whole: Tensor) -> Tensor:
    """Return ``part`` as a shard, where ``whole`` is one."""
    if not hasattr(whole, "to_local"):
        return part
    from torch.distributed.tensor import DTensor

    assert isinstance(whole, DTensor)
    return DTensor.from_local(
        part, whole.device_mesh, whole.placements, shape=whole.shape, stride=whole.stride()
    )
