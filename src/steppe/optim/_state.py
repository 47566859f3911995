"""The state of one parameter: its layout, its first values, and whether a saved one fits.

:func:`state_layout` is the one place that says which tensors a state consists of, with their shapes
and number formats. The step, checkpoints and :func:`steppe.optim.footprint` go by it.
"""

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

#: Formats of a full state: which one depends on the parameter, so checkpoints may have either.
_INTERCHANGEABLE = ({torch.float32, torch.float64}, {torch.complex64, torch.complex128})
_SECOND_MOMENT = "exp_avg_sq"
_SCALE = scale_name("")
#: They have a shape of their own even where it happens to be the parameter's.
_NEVER_PARAM_SHAPED = ("step", KEYS, BIRTHS, REPLACEMENTS, MEAN)


class StateEntry(NamedTuple):
    """Shape and number format of one tensor of the state."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def state_layout(
    method: Method, group: dict[str, Any], param: Tensor, saved: State | None = None
) -> dict[str, StateEntry]:
    """Return names, shapes and number formats of a parameter's state, as in a checkpoint.

    The shape of 8-bit state's scales depends on the memory format of the codes: that of the
    ``saved`` codes where there are some, else the parameter's.
    """
    shape, dtype, full = tuple(param.shape), state_dtype(param, group), wide_dtype(param)
    capacity = group["capacity"] if method.buffer is not None else 0
    like_param = [*method.state, *map(slot_name, range(capacity))]
    # MPS has no float64. In float32 a count would stop at 2²⁴.
    scalar = torch.float32 if param.device.type == "mps" else torch.float64
    entries = {"step": StateEntry((), scalar)}
    entries |= dict.fromkeys(like_param, StateEntry(shape, dtype))
    if dtype == torch.uint8:
        own = scale_layout_of(param, param).shape
        for name in like_param:
            codes = (saved or {}).get(name)
            like = codes if isinstance(codes, Tensor) and codes.shape == param.shape else None
            scales = own if like is None else scale_layout_of(like, param).shape
            entries[scale_name(name)] = StateEntry(scales, torch.float32)
    if method.mean_square is not None:
        entries[MEAN] = StateEntry((), scalar)
    if capacity:
        entries |= dict.fromkeys((KEYS, BIRTHS), StateEntry((capacity,), scalar))
        entries[REPLACEMENTS] = StateEntry((), torch.int64)
        if dtype == full:
            # Slots in low precision are summed afresh in every step instead: reading C of them
            # takes less memory traffic than reading and writing a sum in float32.
            entries[SLOT_SUM] = StateEntry(shape, full)
    return entries


def has_param_shape(name: str, entry: StateEntry, shape: tuple[int, ...]) -> bool:
    """Whether a tensor of the state has its parameter's shape, and so is sharded like it."""
    has_own = name in _NEVER_PARAM_SHAPED or is_scale(name)
    return entry.shape == shape and not has_own


def is_scale(name: str) -> bool:
    """Whether a tensor of the state holds scales of 8-bit state."""
    return name.endswith(_SCALE)


def state_dtype(param: Tensor, group: dict[str, Any]) -> torch.dtype:
    """Return the number format of the parameter-shaped state, given the group's ``state_dtype``.

    Complex parameters keep their state in full, and so do small ones if 8 bits are asked for.
    """
    wanted = group["state_dtype"]
    if wanted is None or param.is_complex():
        return wide_dtype(param)
    if wanted == "int8":
        return torch.uint8 if param.numel() >= SMALL else wide_dtype(param)
    return torch.bfloat16


def check_state_unchanged(
    state: State, param: Tensor, method: Method, group: dict[str, Any]
) -> None:
    """Refuse ``capacity`` or ``state_dtype`` that were changed after the state was made.

    Raises
    ------
    RuntimeError
        The message names the option, its value now, and that of the state.
    """
    if KEYS in state and state[KEYS].numel() != group["capacity"]:
        raise RuntimeError(
            f"capacity={group['capacity']} was changed after the buffer was made with "
            f"{state[KEYS].numel()} slots; set it back, or start a new optimizer"
        )
    for name, entry in state_layout(method, group, param).items():
        if name in state and (difference := _format_mismatch(name, state[name].dtype, entry.dtype)):
            raise RuntimeError(
                f"state_dtype={group['state_dtype']!r} was changed after the state was made: "
                f"{difference}; set it back, or start a new optimizer"
            )


def add_missing_state(state: State, param: Tensor, method: Method, group: dict[str, Any]) -> None:
    """Add the tensors that the state lacks: all of them before a parameter's first step."""
    wanted = state_layout(method, group, param)
    if MEAN not in wanted:
        # No rule updates the mean now. If it is wanted again, it is computed from v below.
        state.pop(MEAN, None)
    # ZeroRedundancyOptimizer loads a checkpoint's tensors as they are, those without dimensions to
    # the CPU (torch/distributed/optim/zero_redundancy_optimizer.py, load_state_dict).
    for name in wanted.keys() & state.keys() - {"step"}:
        state[name] = state[name].to(param.device)
    unpack_scales(state, param)
    # In the layout's order, not a set's: all ranks must gather sharded state in the same order.
    missing = [name for name in wanted if name not in state]
    for name in missing:
        state[name] = _initial_tensor(name, wanted[name], param, group)
    if MEAN in missing and _SECOND_MOMENT not in missing:
        # Earlier steps, without scale_free, updated v but not its mean.
        state[MEAN].copy_(_mean_of_second_moment(param, state, group))


def _mean_of_second_moment(param: Tensor, state: State, group: dict[str, Any]) -> Tensor:
    row = ParamRow.of(0, param, state, group)
    return whole_sum(load_state(row, _SECOND_MOMENT).detach(), row.shard) / max(row.shard.numel, 1)


def copied_to_device(name: str, value: Tensor, param: Tensor, group: dict[str, Any]) -> Tensor:
    """Copy a saved tensor to the device that it belongs on, in its number format."""
    return value.detach().to(_device(name, param, group), copy=True)


def first_mismatch(
    state: dict[str, Any], wanted: dict[str, StateEntry], param: Tensor
) -> str | None:
    """Describe the first difference between a saved state and a parameter's layout, if any."""
    for name, entry in wanted.items():
        if name not in state:
            return f"{name!r} is missing"
        value = state[name]
        if not isinstance(value, Tensor):
            return f"{name!r} is {type(value).__name__}, expected a tensor"
        if tuple(value.shape) != entry.shape:
            return f"{name!r} has shape {tuple(value.shape)}, expected {entry.shape}"
        if name not in _NEVER_PARAM_SHAPED and (
            difference := _sharding_mismatch(name, value, param)
        ):
            return difference
        if difference := _format_mismatch(name, value.dtype, entry.dtype):
            return difference
    return None


def has_complete_state(row: ParamRow, method: Method) -> bool:
    """Whether a parameter has all the state of its method, as it should be."""
    layout = state_layout(method, row.group, row.whole, row.state)
    return bool(row.state) and not first_mismatch(row.state, layout, row.whole)


def _sharding_mismatch(name: str, value: Any, param: Any) -> str | None:
    """Describe how state and parameter are sharded, if they are not sharded alike."""
    if not is_sharded(value) and not is_sharded(param):
        return None
    if is_sharded(value) and is_sharded(param):
        # Scales have placements of their own, which follow the lines of the parameter.
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
    """Describe a format that is not the wanted one; full formats may stand for each other."""
    alike = any({found, wanted} <= formats for formats in _INTERCHANGEABLE)
    if name == REPLACEMENTS or found == wanted or alike:
        return None
    return f"{name!r} is {found}, expected {wanted}"


def _device(name: str, param: Tensor, group: dict[str, Any]) -> torch.device:
    """Step counts stay on the CPU, so that reading them does not wait for the device.

    CUDA graphs can capture only what is on the device: with ``capturable`` they are there.
    """
    return torch.device("cpu") if name == "step" and not group["capturable"] else param.device


def _initial_tensor(name: str, entry: StateEntry, param: Tensor, group: dict[str, Any]) -> Tensor:
    if has_param_shape(name, entry, tuple(param.shape)):
        return torch.zeros_like(param, dtype=entry.dtype, memory_format=torch.preserve_format)
    if is_scale(name):
        return torch.zeros(local_shard_of(param).blocks(BLOCK), device=param.device)
    empty = -torch.inf if name in (KEYS, BIRTHS) else 0
    return torch.full(entry.shape, empty, dtype=entry.dtype, device=_device(name, param, group))
