"""Load and store parameters and state in any number format, in plain torch.

The eager engine rounds to bfloat16 and 8 bits here, by :mod:`steppe._engines.base.number_formats`.
Optimizers read state by it for diagnostics, and ``checkpoint_scales.py`` codes.
"""

import numpy as np
import torch
from torch import Tensor

from steppe._engines.base import number_formats
from steppe._engines.base.bind import bind
from steppe._engines.base.method import SLOT_SUM, slot_name
from steppe._engines.base.number_formats import (
    BLOCK,
    PARAM_ERROR,
    block_count,
    format_of,
    scale_name,
    wide_dtype,
)
from steppe._engines.base.param_row import ParamRow
from steppe._engines.eager import bit_ops

#: Streams of noise: the parameter's, then the state's in the rule's order, then the item's.
PARAM = 0


def widened(tensor: Tensor) -> Tensor:
    """In at least float32: half precision is for storage, not for arithmetic."""
    return tensor.to(wide_dtype(tensor))


def load_param(row: ParamRow) -> Tensor:
    """Return the parameter as numbers to compute with, its error included."""
    if not row.keeps_error:
        return widened(row.param)
    upper = bit_ops.bits(row.param) >> 16
    error = row.part(PARAM_ERROR).long() & 0xFF
    exact: Tensor = bind(number_formats.from_bfloat24, bit_ops)(upper, error)
    return exact


def load_state(row: ParamRow, name: str) -> Tensor:
    """Return the state ``name`` as numbers to compute with, in the parameter's wide format."""
    value = row.part(name)
    if value.dtype != torch.uint8:
        return value.to(torch.promote_types(value.dtype, wide_dtype(row.param)))
    decode = bind(getattr(number_formats, f"from_{format_of(name, value)}"), bit_ops)
    positions, whole_blocks = _grid(row, value)
    codes = in_blocks(in_memory_order(value).long(), positions, len(whole_blocks))
    numbers = decode(codes, row.part(scale_name(name))[:, None]).view(-1)[positions]
    return from_memory_order(numbers, value).to(wide_dtype(row.param))


def store_state(row: ParamRow, name: str, value: Tensor, stream: int) -> None:
    """Write the state ``name`` in its number format; ``stream`` tells its noise from others'."""
    for target, numbers in _stored(row, name, value, stream):
        target.copy_(numbers)


def store_where(row: ParamRow, name: str, mask: Tensor, value: Tensor, stream: int) -> None:
    """Write the state ``name`` if the 0-dim ``mask`` says so, without reading it back."""
    for target, numbers in _stored(row, name, value, stream):
        target.copy_(torch.where(mask, numbers.to(target.dtype), target))


def store_param(row: ParamRow, value: Tensor) -> None:
    """Write the parameter in its number format; half precision but float16's is stochastic."""
    if row.keeps_error:
        upper, error = _as_bfloat24(row, value)
        row.param.copy_(upper)
        row.part(PARAM_ERROR).copy_(error)
    elif row.param.dtype == torch.bfloat16 and not row.group["differentiable"]:
        row.param.copy_(_as_bfloat16(row, row.param, value, PARAM))
    else:
        row.param.copy_(value)


def slot_sum(row: ParamRow) -> Tensor:
    """Return the sum of the slots: the one that is kept, or of low-precision slots a fresh one."""
    if not row.capacity:
        return torch.zeros_like(widened(row.param))
    if SLOT_SUM in row.state:
        return row.part(SLOT_SUM)
    return fresh_sum(row)


def fresh_sum(row: ParamRow) -> Tensor:
    """Sum the slots, in their order."""
    total = load_state(row, slot_name(0)).clone()
    for i in range(1, row.capacity):
        total = total + load_state(row, slot_name(i))
    return total


def _stored(row: ParamRow, name: str, value: Tensor, stream: int) -> list[tuple[Tensor, Tensor]]:
    """Return the tensors that hold the state ``name``, and what each is to hold for a value."""
    target = row.part(name)
    if target.dtype == torch.bfloat16:
        return [(target, _as_bfloat16(row, target, value, stream))]
    if target.dtype != torch.uint8:
        return [(target, value)]
    positions, whole_blocks = _grid(row, target)
    numbers = in_blocks(in_memory_order(value, target), positions, len(whole_blocks))
    noise = _noise(row, stream, whole_blocks)
    codes, scale = encoded(format_of(name, target), numbers, noise)
    packed = from_memory_order(codes.view(-1)[positions], target)
    return [(row.part(scale_name(name)), scale), (target, packed)]


def _as_bfloat16(row: ParamRow, target: Tensor, value: Tensor, stream: int) -> Tensor:
    """Return numbers in float32 that bfloat16 has, laid out as the target is."""
    positions, whole_blocks = _grid(row, target)
    numbers = in_blocks(in_memory_order(value, target), positions, len(whole_blocks))
    upper = bind(number_formats.to_bfloat16, bit_ops)(numbers, _noise(row, stream, whole_blocks))
    return from_memory_order(bit_ops.number(upper << 16).view(-1)[positions], target)


def _as_bfloat24(row: ParamRow, value: Tensor) -> tuple[Tensor, Tensor]:
    """Return the nearest bfloat16 numbers, in float32, and their errors."""
    positions, whole_blocks = _grid(row, row.param)
    numbers = in_blocks(in_memory_order(value, row.param), positions, len(whole_blocks))
    noise = _noise(row, PARAM, whole_blocks)
    words = bind(number_formats.to_bfloat24, bit_ops)(numbers, noise).view(-1)[positions]
    upper = bit_ops.number(bind(number_formats.nearest_bfloat16, bit_ops)(words) << 16)
    error = (words & 0xFF).to(torch.uint8).view(torch.int8)
    return from_memory_order(upper, row.param), from_memory_order(error, row.param)


def encoded(kind: str, numbers: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return the codes and scales of rows of blocks."""
    largest = bind(number_formats.size_word, bit_ops)(numbers).amax(1)
    scale: Tensor = bind(getattr(number_formats, f"scale_{kind}"), bit_ops)(largest)
    codes = bind(getattr(number_formats, f"to_{kind}"), bit_ops)(
        numbers, (1.0 / scale)[:, None], noise
    )
    return codes.to(torch.uint8), scale


def _noise(row: ParamRow, stream: int, whole_blocks: Tensor) -> Tensor:
    """Return the noise of whole blocks, by their numbers in the whole tensor."""
    step = row.state["step"].to(whole_blocks.device, torch.int64)
    number = torch.tensor(row.index, device=whole_blocks.device)
    key = bind(number_formats.noise_key, bit_ops)(number, step)
    offsets = bind(number_formats.noise_offset, bit_ops)(key, stream, whole_blocks)
    places = whole_blocks[:, None] * BLOCK + torch.arange(BLOCK, device=whole_blocks.device)
    noise: Tensor = bind(number_formats.noise, bit_ops)(offsets[:, None], places)
    return noise


def _grid(row: ParamRow, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return where each element stands in rows of blocks, and the blocks' numbers in the whole."""
    shard, device = row.shard, target.device
    starts, size = shard.runs
    if len(starts) == 1:
        # Made on the device, where a CUDA graph may be recording.
        first_block, lead = divmod(int(starts[0]), BLOCK) if size else (0, 0)
        positions = torch.arange(size, device=device) + lead
        return positions, torch.arange(block_count(size + lead), device=device) + first_block
    chunks = shard.cut(BLOCK, BLOCK)
    begin = chunks.block * BLOCK + chunks.whole_first % BLOCK - chunks.first
    places = np.repeat(begin, chunks.size) + np.arange(target.numel())
    whole_blocks = torch.from_numpy(chunks.whole_first // BLOCK).to(device)
    return torch.from_numpy(places).to(device), whole_blocks


def _order(tensor: Tensor) -> list[int]:
    strides = tensor.stride()
    return sorted(range(tensor.ndim), key=lambda i: -strides[i])


def in_memory_order(tensor: Tensor, like: Tensor | None = None) -> Tensor:
    """Return the elements in the order in which those of ``like`` lie in memory."""
    return tensor.permute(_order(tensor if like is None else like)).reshape(-1)


def from_memory_order(flat: Tensor, like: Tensor) -> Tensor:
    """Return the tensor of which :func:`in_memory_order` made ``flat``."""
    order = _order(like)
    shape = [like.shape[i] for i in order]
    back = sorted(range(len(order)), key=order.__getitem__)
    return flat[: like.numel()].view(shape).permute(back)


def in_blocks(flat: Tensor, positions: Tensor, count: int) -> Tensor:
    """Put elements at their places in rows of blocks, and 0 at the others."""
    return flat.new_zeros(count * BLOCK).scatter(0, positions, flat).view(-1, BLOCK)
