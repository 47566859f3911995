"""What an optimizer asks of sharded parameters (DTensors), checked before a step changes anything.

Parameters that FSDP1 has flattened are no DTensors: :mod:`steppe.optim._fsdp1` is about those.
"""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from steppe._engines import Group, is_member, is_sharded


def check_shards(members: Iterable[tuple[Tensor, Group]], name_of: Callable[[int], str]) -> None:
    """Refuse a sharded parameter that an optimizer cannot step.

    Parameters
    ----------
    members
        Every parameter of the optimizer and its group.
    name_of
        Returns the name of a parameter for the error message, given its index among all.

    Raises
    ------
    RuntimeError
        Its group is differentiable, or this process does not belong to its device mesh.
    """
    param: Any
    for index, (param, group) in enumerate(members):
        if not is_sharded(param):
            continue
        name = f"{name_of(index)}, shape {tuple(param.shape)}"
        if group["differentiable"]:
            raise RuntimeError(
                f"differentiable=True does not take sharded parameters: {name}; use plain tensors"
            )
        if not is_member(param):
            raise RuntimeError(
                f"this process has no part of {name}, on {param.device_mesh}: expected optimizers "
                "that hold the same parameters in all processes of a mesh, and in no others"
            )
