"""The state of one parameter: its layout and its first values.

:func:`state_layout` is the one place that says which tensors a state consists of, with their shapes
and number formats. The step, checkpoints and :func:`steppe.optim.footprint` go by it. Whether a
state fits is asked in ``_state_checks.py``.
"""

from collections.abc import Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from steppe._engines import (
    BIRTHS,
    BLOCK,
    KEYS,
    MEAN,
    NEVER_PARAM_SHAPED,
    PARAM_ERROR,
    REPLACEMENTS,
    SLOT_SUM,
    SMALL,
    Method,
    ParamRow,
    State,
    load_state,
    local_part,
    local_shard_of,
    scale_layout_of,
    scale_name,
    slot_name,
    store_state,
    takes_error,
    unpack_scales,
    whole_sum,
    wide_dtype,
)

#: Formats of a full state: which one depends on the parameter, so checkpoints may have either.
_INTERCHANGEABLE = ({torch.float32, torch.float64}, {torch.complex64, torch.complex128})
#: Of which ``scale_free`` keeps the mean.
SECOND_MOMENT = "exp_avg_sq"
_SCALE = scale_name("")


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
    if group.get("param_error") is not None and takes_error(param):
        entries[PARAM_ERROR] = StateEntry(shape, torch.int8)
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
    has_own = name in NEVER_PARAM_SHAPED or is_scale(name)
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


def add_missing_state(state: State, param: Tensor, method: Method, group: dict[str, Any]) -> None:
    """Bring a state into the layout that the options ask for.

    Tensors that it lacks are added, all of them before a parameter's first step; those that a user
    has replaced, such as moments reset to ``zeros_like(p.data)``, get their number format again.
    """
    wanted = state_layout(method, group, param)
    for name in {MEAN, PARAM_ERROR} - wanted.keys():
        # Nobody brings it up to date now. If it is wanted again, the mean is computed from v below,
        # and the parameter begins without an error.
        state.pop(name, None)
    # ZeroRedundancyOptimizer loads a checkpoint's tensors as they are, those without dimensions to
    # the CPU (torch/distributed/optim/zero_redundancy_optimizer.py, load_state_dict).
    for name in wanted.keys() & state.keys() - {"step"}:
        state[name] = state[name].to(param.device)
    unpack_scales(state, param)
    if "step" in state:
        state["step"] = as_step_count(state["step"])
    # In the layout's order, not a set's: all ranks must gather sharded state in the same order.
    missing = [name for name in wanted if name not in state]
    for name in missing:
        state[name] = _initial_tensor(name, wanted[name], param, group)
    for name, entry in wanted.items():
        if not stands_for(name, state[name].dtype, entry.dtype):
            _convert(state, name, entry, param, group)
    if MEAN in missing and SECOND_MOMENT not in missing:
        # Earlier steps, without scale_free, updated v but not its mean.
        state[MEAN].copy_(mean_of_second_moment(param, state, group))


@contextmanager
def unchanged_if_refused(
    states: MutableMapping[Tensor, State], params: Iterable[Tensor]
) -> Iterator[None]:
    """Take what the block has added to parameters' states out again if it raises."""
    params = list(params)
    found = [param for param in params if param in states]
    for param in found:
        # It rewrites codes in their place, which older scales would then misread.
        unpack_scales(states[param], param)
    before = {param: dict(states[param]) for param in found}
    try:
        yield
    except BaseException:
        for param in params:
            if param in before:
                # Its owner may hold the dictionary.
                states[param].clear()
                states[param].update(before[param])
            else:
                states.pop(param, None)
        raise


def completed(state: State, param: Tensor, method: Method, group: dict[str, Any]) -> State:
    """Return the state as the next step will find it; the optimizer's own stays as it is."""
    if "step" not in state:
        return state
    # ZeroRedundancyOptimizer puts a checkpoint's state, scales by lines, in as it is. Those are
    # unpacked in their place, because their codes are.
    unpack_scales(state, param)
    complete = dict(state)
    add_missing_state(complete, param, method, group)
    return complete


def stands_for(name: str, found: torch.dtype, wanted: torch.dtype) -> bool:
    """Whether a tensor of the state can stay in the format that it has."""
    alike = any({found, wanted} <= formats for formats in _INTERCHANGEABLE)
    return name == REPLACEMENTS or found == wanted or alike


def as_step_count(value: Any) -> Tensor:
    """Return a step count, a number or a tensor of any format, as the tensor that steps count in.

    It is a float64 tensor without dimensions, or float32 on MPS, which has no float64. In float32,
    as in ``torch.optim`` and in old checkpoints, a count would stop at 2²⁴.
    """
    if not isinstance(value, Tensor):
        number = value if isinstance(value, int | float) else value.item()
        return torch.tensor(float(number), dtype=torch.float64, device="cpu")
    wanted = torch.float32 if value.device.type == "mps" else torch.float64
    if value.dtype.is_floating_point and value.ndim == 0:
        # Only the storage changes, not the tensor: who holds it sees the count go on.
        value.data = value.data.to(wanted)
        return value
    return value.reshape(()).to(wanted)


def _convert(
    state: State, name: str, entry: StateEntry, param: Tensor, group: dict[str, Any]
) -> None:
    """Bring a tensor of the state into its number format."""
    value = state[name]
    if entry.dtype != torch.uint8:
        state[name] = value.to(entry.dtype)
        return
    for each in (name, scale_name(name)):
        state[each] = _initial_tensor(each, entry, param, group)
    row = ParamRow.of(0, param, state, group)
    store_state(row, name, local_part(value).to(wide_dtype(param)), 0)


def mean_of_second_moment(param: Tensor, state: State, group: dict[str, Any]) -> Tensor:
    """Return the mean of a parameter's v over all its shards, in float64."""
    row = ParamRow.of(0, param, state, group)
    return whole_sum(load_state(row, SECOND_MOMENT).detach(), row.shard) / max(row.shard.numel, 1)


def copied_to_device(name: str, value: Tensor, param: Tensor, group: dict[str, Any]) -> Tensor:
    """Copy a saved tensor to the device that it belongs on, in its number format."""
    return value.detach().to(_device(name, param, group), copy=True)


def has_complete_state(state: State, param: Tensor, method: Method, group: dict[str, Any]) -> bool:
    """Whether a parameter has all the state of its method, in the right formats."""
    if "step" not in state or not isinstance(state["step"], Tensor):
        return False
    layout = state_layout(method, group, param, state)
    return all(
        name in state and stands_for(name, state[name].dtype, entry.dtype)
        for name, entry in layout.items()
    )


def _device(name: str, param: Tensor, group: dict[str, Any]) -> torch.device:
    """Step counts stay on the CPU, so that reading them does not wait for the device.

    CUDA graphs can capture only what is on the device: with ``capturable`` they are there.
    """
    return torch.device("cpu") if name == "step" and not group["capturable"] else param.device


def _initial_tensor(name: str, entry: StateEntry, param: Tensor, group: dict[str, Any]) -> Tensor:
    if has_param_shape(name, entry, tuple(param.shape)):
        return torch.zeros_like(param, dtype=entry.dtype, memory_format=torch.preserve_format)
    if is_scale(name):
        count = local_shard_of(param).blocks(BLOCK)
        return torch.zeros(count, dtype=torch.float32, device=param.device)
    empty = -torch.inf if name in (KEYS, BIRTHS) else 0
    return torch.full(entry.shape, empty, dtype=entry.dtype, device=_device(name, param, group))
