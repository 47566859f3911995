"""Check that a checkpoint fits an optimizer, and restore it bit for bit."""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from steppe._engines import Group, Method, pack_scales, unpack_scales
from steppe.optim._options import check
from steppe.optim._state import layout, mismatch, place

MethodOf = Callable[[Group], Method]


def check_fits(optimizer: Optimizer, method_of: MethodOf, state_dict: dict[str, Any]) -> None:
    """Refuse a checkpoint that does not fit.

    Raises
    ------
    ValueError
        It names the first difference: keys, groups, options, or the state of a parameter.
    """
    refuse = f"checkpoint does not fit this {type(optimizer).__name__}: "
    for key in ("state", "param_groups"):
        if key not in state_dict:
            raise ValueError(f"{refuse}{key!r} is missing")
    saved, own = state_dict["param_groups"], optimizer.param_groups
    if len(saved) != len(own):
        raise ValueError(f"{refuse}it has {len(saved)} parameter groups, expected {len(own)}")
    for number, (theirs, ours) in enumerate(zip(saved, own, strict=True)):
        if "params" not in theirs:
            raise ValueError(f"{refuse}'params' of group {number} is missing")
        if len(theirs["params"]) != len(ours["params"]):
            raise ValueError(
                f"{refuse}group {number} has {len(theirs['params'])} parameters, "
                f"expected {len(ours['params'])}"
            )
        if missing := optimizer.defaults.keys() - theirs.keys():
            raise ValueError(f"{refuse}option {min(missing)!r} of group {number} is missing")
        check({name: theirs[name] for name in optimizer.defaults})
    known = {number for group in saved for number in group["params"]}
    if strangers := [key for key in state_dict["state"] if key not in known]:
        raise ValueError(f"{refuse}state of {strangers[0]!r} belongs to no parameter of its groups")
    for number, param, group, state in _pairs(optimizer, state_dict):
        wanted = layout(method_of(group), group, param, state)
        if difference := mismatch(state, wanted, param):
            raise ValueError(
                f"{refuse}state of parameter {number}, shape {tuple(param.shape)}: {difference}"
            )


def restore(optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
    """Put copies of the saved tensors in place, in the formats they were saved in."""
    for _, param, group, state in _pairs(optimizer, state_dict):
        own = {
            name: place(name, value, param, group) if isinstance(value, Tensor) else value
            for name, value in state.items()
        }
        unpack_scales(own, param)
        optimizer.state[param] = own


def portable(optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint that does not depend on how the parameters are sharded."""
    states = dict(state_dict["state"])
    for number, param, _, state in _pairs(optimizer, state_dict):
        states[number] = pack_scales(state, param)
    return {**state_dict, "state": states}


def _pairs(
    optimizer: Optimizer, state_dict: dict[str, Any]
) -> Iterator[tuple[int, Tensor, Group, dict[str, Any]]]:
    """Yield number, parameter, saved group and saved state of each parameter that has some."""
    for theirs, ours in zip(state_dict["param_groups"], optimizer.param_groups, strict=True):
        for number, param in zip(theirs["params"], ours["params"], strict=True):
            if state := state_dict["state"].get(number):
                yield number, param, theirs, state
