"""Whether a state fits its parameter: the same question before a step and of a checkpoint.

So what a step has accepted can be loaded, and what cannot be loaded is refused when it is stepped
with.
"""

from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from steppe._engines import (
    BLOCK,
    KEYS,
    NEVER_PARAM_SHAPED,
    REPLACEMENTS,
    SLOT_SUM,
    Method,
    is_sharded,
    is_traced,
    local_shard_of,
    scale_name,
    slot_name,
)
from steppe.optim._state import StateEntry, is_scale, stands_for, state_layout

#: From here on a count in float64 would stop.
_LARGEST_COUNT = 2**53
_SLOT = slot_name(0).removesuffix("0")


class Mismatch(NamedTuple):
    """The first difference between a state and a parameter's layout.

    Attributes
    ----------
    text
        Names the tensor, what it is, and what is expected.
    is_format
        Whether it is a matter of number formats.
    """

    text: str
    is_format: bool = False


def check_state(
    state: dict[str, Any],
    param: Tensor,
    method: Method,
    group: dict[str, Any],
    name: str,
    optional: Collection[str],
) -> None:
    """Refuse to step with a state that could not be loaded.

    Parameters
    ----------
    state, param, method, group
        The state of a parameter, its method and the options of its group.
    name
        Of the parameter, for the message.
    optional
        As in :func:`first_mismatch`.

    Raises
    ------
    RuntimeError
        The message names an option that was changed, its value now and that of the state; or the
        tensor that does not fit.
    """
    keys = state.get(KEYS)
    if isinstance(keys, Tensor) and keys.numel() != group["capacity"]:
        raise RuntimeError(
            f"capacity={group['capacity']} was changed after the buffer was made with "
            f"{keys.numel()} slots; set it back, or start a new optimizer"
        )
    difference = first_mismatch(state, state_layout(method, group, param), param, optional)
    if difference is None:
        return
    if difference.is_format:
        raise RuntimeError(
            f"state_dtype={group['state_dtype']!r} was changed after the state was made: "
            f"{difference.text}; set it back, or start a new optimizer"
        )
    raise RuntimeError(
        f"state of {name}, shape {tuple(param.shape)}: {difference.text}; set it right, or start "
        "the parameter afresh with optimizer.state[param].clear()"
    )


def first_mismatch(
    state: dict[str, Any], wanted: dict[str, StateEntry], param: Tensor, optional: Collection[str]
) -> Mismatch | None:
    """Describe the first difference between a state and a parameter's layout, if any.

    Parameters
    ----------
    state
        Of one parameter; in a checkpoint or not.
    wanted
        Its layout.
    param
        The parameter.
    optional
        Names of what options add when they are switched on: the next step adds it.
    """
    if not state.keys() & wanted.keys() and not _has_param_shaped(state, param):
        return None  # Only a user's own entries: the parameter has taken no step.
    addable = {*optional, *_buffer_to_add(state, wanted)}
    # Slots in full have a sum, and rounded ones have none: the whole state is of another format.
    is_other = slot_name(0) in state and (SLOT_SUM in state) != (SLOT_SUM in wanted)
    for name, entry in wanted.items():
        if is_scale(name) and not _has_codes(state, name):
            continue
        if name not in state:
            if name in addable:
                continue
            return Mismatch(f"{name!r} is missing")
        difference = _mismatch(name, state[name], entry, param)
        if difference is None and not _converts(name, state, entry.dtype, is_other=is_other):
            found = f"{name!r} is {state[name].dtype}, expected {entry.dtype}"
            difference = Mismatch(found, is_format=_may_be_an_options(state[name], entry.dtype))
        if difference is not None:
            return difference
    return None


def _has_param_shaped(state: dict[str, Any], param: Tensor) -> bool:
    return any(isinstance(x, Tensor) and x.shape == param.shape for x in state.values())


def _buffer_to_add(state: dict[str, Any], wanted: dict[str, StateEntry]) -> list[str]:
    """Return the buffer's names if the state has no part of one: it then begins empty."""
    buffer = [name for name in wanted if name == REPLACEMENTS or name.startswith(_SLOT)]
    return [] if any(name in state for name in buffer) else buffer


def _has_codes(state: dict[str, Any], scale: str) -> bool:
    """Whether a state has the codes that scales belong to, and not numbers in their place."""
    codes = state.get(scale.removesuffix(scale_name("")))
    return isinstance(codes, Tensor) and codes.dtype == torch.uint8


def _mismatch(name: str, value: Any, entry: StateEntry, param: Tensor) -> Mismatch | None:
    """Describe what is wrong with one tensor, its number format aside."""
    if name == "step":
        return _step_mismatch(value, param)
    if not isinstance(value, Tensor):
        return Mismatch(f"{name!r} is {type(value).__name__}, expected a tensor")
    if value.layout is not torch.strided:
        return Mismatch(f"{name!r} is {value.layout}, expected a dense tensor")
    if value.is_meta and not param.is_meta:
        return Mismatch(f"{name!r} is on the meta device, expected a tensor with numbers")
    shape = entry.shape
    if is_scale(name) and value.ndim == 1:
        shape = (local_shard_of(param).blocks(BLOCK),)  # as a step has them, not a checkpoint
    if tuple(value.shape) != shape:
        return Mismatch(f"{name!r} has shape {tuple(value.shape)}, expected {shape}")
    if name not in NEVER_PARAM_SHAPED and not (is_scale(name) and value.ndim == 1):
        return _sharding_mismatch(name, value, param)
    return None


def _step_mismatch(value: Any, param: Tensor) -> Mismatch | None:
    """Describe what is wrong with a step count: any whole number is right, in any format."""
    if isinstance(value, Tensor):
        if value.numel() != 1:
            return Mismatch(f"'step' has shape {tuple(value.shape)}, expected ()")
        if value.is_meta and not param.is_meta:
            return Mismatch("'step' is on the meta device, expected a whole number ≥ 0")
        if value.device.type != "cpu" or is_traced(value):
            return None  # Reading it would wait for the device, or fail.
        value = value.item()
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not is_number or not 0 <= value < _LARGEST_COUNT or value != int(value):
        return Mismatch(f"'step' is {value!r}, expected a whole number ≥ 0")
    return None


def _converts(name: str, state: dict[str, Any], wanted: torch.dtype, *, is_other: bool) -> bool:
    """Whether a tensor is in its number format, or the next step can bring it into that."""
    if name == "step":
        return True
    found: torch.dtype = state[name].dtype
    if stands_for(name, found, wanted):
        return True
    if is_other or found == torch.uint8 or (found.is_floating_point and found.itemsize == 1):
        return False  # torch computes with no floating-point format of 8 bits
    if wanted == torch.uint8:
        return found.is_floating_point and scale_name(name) in state
    kinds = (found, wanted)
    return all(x.is_floating_point for x in kinds) or all(x.is_complex for x in kinds)


def _may_be_an_options(value: Tensor, wanted: torch.dtype) -> bool:
    """Whether ``state_dtype`` may have asked for the format of a tensor when it was made."""
    return (value.is_floating_point() and wanted.is_floating_point) or torch.uint8 in (
        value.dtype,
        wanted,
    )


def _sharding_mismatch(name: str, value: Any, param: Any) -> Mismatch | None:
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
    return Mismatch(
        f"{name!r} is {kinds[0]}, its parameter {kinds[1]}: load it with set_optimizer_state_dict "
        "of torch.distributed.checkpoint.state_dict"
    )
