"""The state of one parameter: what it consists of, its first values, and whether one fits."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from steppe._engines import (
    BIRTHS,
    BLOCK,
    KEYS,
    MEAN,
    REPLACEMENTS,
    SLOT_SUM,
    SMALL,
    Method,
    ParamRow,
    State,
    is_sharded,
    load_state,
    local_shard_of,
    scale_layout_of,
    scale_name,
    slot_name,
    unpack_scales,
    whole_sum,
    wide_dtype,
)

_FULL = ({torch.float32, torch.float64}, {torch.complex64, torch.complex128})
_SECOND_MOMENT = "exp_avg_sq"
_SCALE = scale_name("")
_OWN_SHAPE = ("step", KEYS, BIRTHS, REPLACEMENTS, MEAN)


class Entry(NamedTuple):
    """Shape and number format of one tensor of the state."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def layout(
    method: Method, group: dict[str, Any], param: Tensor, saved: State | None = None
) -> dict[str, Entry]:
    """Return what the state of a parameter consists of in a checkpoint.

    The scales of 8-bit state go by how its codes lie, of which some may be ``saved`` already.
    """
    shape, dtype, full = tuple(param.shape), state_dtype(param, group), wide_dtype(param)
    capacity = group["capacity"] if method.buffer is not None else 0
    like_param = [*method.state, *map(slot_name, range(capacity))]
    entries = {"step": Entry((), torch.float32)}
    entries |= dict.fromkeys(like_param, Entry(shape, dtype))
    if dtype == torch.uint8:
        own = scale_layout_of(param, param).shape
        for name in like_param:
            codes = (saved or {}).get(name)
            like = codes if isinstance(codes, Tensor) and codes.shape == param.shape else None
            scales = own if like is None else scale_layout_of(like, param).shape
            entries[scale_name(name)] = Entry(scales, torch.float32)
    number = torch.float32 if param.device.type == "mps" else torch.float64
    if method.mean_square is not None:
        entries[MEAN] = Entry((), number)
    if capacity:
        entries |= dict.fromkeys((KEYS, BIRTHS), Entry((capacity,), number))
        entries[REPLACEMENTS] = Entry((), torch.int64)
        if dtype == full:
            # Slots in low precision are summed afresh in every step: it is less to read.
            entries[SLOT_SUM] = Entry(shape, full)
    return entries


def is_like(name: str, entry: Entry, shape: tuple[int, ...]) -> bool:
    """Whether a tensor of the state has its parameter's shape, and is sharded as it is."""
    has_own = name in _OWN_SHAPE or is_scale(name)
    return entry.shape == shape and not has_own


def is_scale(name: str) -> bool:
    """Whether a tensor of the state holds scales of 8-bit state."""
    return name.endswith(_SCALE)


def state_dtype(param: Tensor, group: dict[str, Any]) -> torch.dtype:
    """Return the number format of the parameter-shaped state that a group asks for.

    Complex parameters, and small ones where 8 bits are asked for, keep it in full.
    """
    wanted = group["state_dtype"]
    if wanted is None or param.is_complex():
        return wide_dtype(param)
    if wanted == "int8":
        return torch.uint8 if param.numel() >= SMALL else wide_dtype(param)
    return torch.bfloat16


def check_unchanged(state: State, param: Tensor, method: Method, group: dict[str, Any]) -> None:
    """Refuse a buffer of another size, or state in another format, than the group asks for."""
    if KEYS in state and state[KEYS].numel() != group["capacity"]:
        raise RuntimeError(
            f"capacity={group['capacity']} was changed after the buffer was made with "
            f"{state[KEYS].numel()} slots; set it back, or start a new optimizer"
        )
    for name, entry in layout(method, group, param).items():
        if name in state and (difference := _format_mismatch(name, state[name].dtype, entry.dtype)):
            raise RuntimeError(
                f"state_dtype={group['state_dtype']!r} was changed after the state was made: "
                f"{difference}; set it back, or start a new optimizer"
            )


def complete(state: State, param: Tensor, method: Method, group: dict[str, Any]) -> None:
    """Add what the state lacks: all of it before a parameter's first step."""
    wanted = layout(method, group, param)
    if MEAN not in wanted:
        # Nobody brings it up to date; where it is wanted again it is made afresh.
        state.pop(MEAN, None)
    # ZeroRedundancyOptimizer loads a checkpoint as it is, and what has no dimensions onto the host.
    for name in wanted.keys() & state.keys() - {"step"}:
        state[name] = state[name].to(param.device)
    unpack_scales(state, param)
    # In the layout's order, not in a set's: ranks that gather sharded state go through it alike.
    missing = [name for name in wanted if name not in state]
    for name in missing:
        state[name] = _initial(name, wanted[name], param, group)
    if MEAN in missing and _SECOND_MOMENT not in missing:
        # That of steps that needed no mean.
        state[MEAN].copy_(_mean_of_second_moment(param, state, group))


def _mean_of_second_moment(param: Tensor, state: State, group: dict[str, Any]) -> Tensor:
    row = ParamRow.of(0, param, state, group)
    return whole_sum(load_state(row, _SECOND_MOMENT).detach(), row.shard) / max(row.shard.numel, 1)


def place(name: str, value: Tensor, param: Tensor, group: dict[str, Any]) -> Tensor:
    """Copy a saved tensor to where it belongs, in the number format it was saved in."""
    return value.detach().to(_device(name, param, group), copy=True)


def mismatch(state: dict[str, Any], wanted: dict[str, Entry], param: Tensor) -> str | None:
    """Return the first difference between a saved state and a parameter's layout, in words."""
    for name, entry in wanted.items():
        if name not in state:
            return f"{name!r} is missing"
        value = state[name]
        if not isinstance(value, Tensor):
            return f"{name!r} is {type(value).__name__}, expected a tensor"
        if tuple(value.shape) != entry.shape:
            return f"{name!r} has shape {tuple(value.shape)}, expected {entry.shape}"
        if name not in _OWN_SHAPE and (difference := _sharding_mismatch(name, value, param)):
            return difference
        if difference := _format_mismatch(name, value.dtype, entry.dtype):
            return difference
    return None


def _sharding_mismatch(name: str, value: Any, param: Any) -> str | None:
    """Say that state is not sharded as its parameter is."""
    if not is_sharded(value) and not is_sharded(param):
        return None
    if is_sharded(value) and is_sharded(param):
        # Scales lie as the lines of the parameter do.
        is_placed = is_scale(name) or value.placements == param.placements
        if is_placed and value.device_mesh == param.device_mesh:
            return None
    kinds = [
        f"sharded over {x.device_mesh} as {x.placements}" if is_sharded(x) else "whole"
        for x in (value, param)
    ]
    return (
        f"{name!r} is {kinds[0]}, its parameter {kinds[1]}: load it with set_optimizer_state_dict "
        "of torch.distributed.checkpoint.state_dict"
    )


def _format_mismatch(name: str, found: torch.dtype, wanted: torch.dtype) -> str | None:
    """Let formats that are full for some parameter stand for each other: others lose or gain."""
    alike = any({found, wanted} <= formats for formats in _FULL)
    if name == REPLACEMENTS or found == wanted or alike:
        return None
    return f"{name!r} is {found}, expected {wanted}"


def _device(name: str, param: Tensor, group: dict[str, Any]) -> torch.device:
    """Step counts stay on the CPU, where reading them is free, unless a graph captures them."""
    return torch.device("cpu") if name == "step" and not group["capturable"] else param.device


def _initial(name: str, entry: Entry, param: Tensor, group: dict[str, Any]) -> Tensor:
    if is_like(name, entry, tuple(param.shape)):
        return torch.zeros_like(param, dtype=entry.dtype, memory_format=torch.preserve_format)
    if is_scale(name):
        return torch.zeros(local_shard_of(param).blocks(BLOCK), device=param.device)
    empty = -torch.inf if name in (KEYS, BIRTHS) else 0
    return torch.full(entry.shape, empty, dtype=entry.dtype, device=_device(name, param, group))
