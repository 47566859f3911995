"""The state of one parameter: what it consists of, its first values, and whether one fits."""

from typing import Any

import torch
from torch import Tensor

from steppe.engines.kernel import BIRTHS, KEYS, REPLACEMENTS, SLOT_SUM, Kernel, slot_name

State = dict[str, Tensor]
Shape = tuple[int, ...]


def layout(kernel: Kernel, group: dict[str, Any], shape: Shape) -> dict[str, Shape]:
    """Return the name and shape of each tensor in the state of a parameter of this shape."""
    shapes: dict[str, Shape] = {"step": (), **dict.fromkeys(kernel.state, shape)}
    capacity = group["capacity"] if kernel.buffer is not None else 0
    if capacity:
        shapes[SLOT_SUM] = shape
        shapes |= {slot_name(i): shape for i in range(capacity)}
        shapes |= {KEYS: (capacity,), BIRTHS: (capacity,), REPLACEMENTS: ()}
    return shapes


def check_capacity(state: State, group: dict[str, Any]) -> None:
    """Refuse a buffer of another size than the group asks for."""
    if KEYS in state and state[KEYS].numel() != group["capacity"]:
        raise RuntimeError(
            f"capacity={group['capacity']} was changed after the buffer was made with "
            f"{state[KEYS].numel()} slots; set it back, or start a new optimizer"
        )


def complete(state: State, param: Tensor, kernel: Kernel, group: dict[str, Any]) -> None:
    """Add what the state lacks: all of it before a parameter's first step."""
    wanted = layout(kernel, group, tuple(param.shape))
    # In the layout's order, not in a set's: ranks that gather sharded state go through it alike.
    for name in [name for name in wanted if name not in state]:
        state[name] = _initial(name, wanted[name], param, group)


def place(name: str, value: Tensor, param: Tensor, group: dict[str, Any]) -> Tensor:
    """Copy a saved tensor to where it belongs, in the number format it was saved in."""
    return value.detach().to(_device(name, param, group), copy=True)


def mismatch(state: dict[str, Any], param: Tensor, wanted: dict[str, Shape]) -> str | None:
    """Return the first difference between a saved state and a parameter's layout, in words."""
    for name, shape in wanted.items():
        if name not in state:
            return f"{name!r} is missing"
        value = state[name]
        if not isinstance(value, Tensor):
            return f"{name!r} is {type(value).__name__}, expected a tensor"
        if tuple(value.shape) != shape:
            return f"{name!r} has shape {tuple(value.shape)}, expected {shape}"
        if difference := _format_mismatch(name, value, param):
            return difference
    return None


def _format_mismatch(name: str, value: Tensor, param: Tensor) -> str | None:
    """Let formats differ in width only: as integers, or without a part, moments would be lost."""
    if name == REPLACEMENTS:
        return None
    is_complex = param.is_complex() and name not in ("step", KEYS, BIRTHS)
    if value.is_complex() == is_complex and (is_complex or value.is_floating_point()):
        return None
    wanted = "complex" if is_complex else "real floating point"
    return f"{name!r} is {value.dtype}, expected {wanted} numbers"


def _device(name: str, param: Tensor, group: dict[str, Any]) -> torch.device:
    """Step counts stay on the CPU, where reading them is free, unless a graph captures them."""
    return torch.device("cpu") if name == "step" and not group["capturable"] else param.device


def _initial(name: str, shape: Shape, param: Tensor, group: dict[str, Any]) -> Tensor:
    device = _device(name, param, group)
    if name == "step":
        return torch.zeros((), dtype=torch.float32, device=device)
    if name == REPLACEMENTS:
        return torch.zeros((), dtype=torch.int64, device=device)
    if name in (KEYS, BIRTHS):
        dtype = torch.float32 if device.type == "mps" else torch.float64
        return torch.full(shape, -torch.inf, dtype=dtype, device=device)
    dtype = torch.promote_types(param.dtype, torch.float32)
    return torch.zeros_like(param, dtype=dtype, memory_format=torch.preserve_format)
