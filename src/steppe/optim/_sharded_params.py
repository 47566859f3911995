"""What an optimizer asks of sharded parameters (DTensors), checked before a step changes anything.

Parameters that FSDP1 has flattened are no DTensors: :mod:`steppe.optim._fsdp1` is about those.
"""

from typing import TYPE_CHECKING, Any

from steppe._engines.base.sharding import is_member, is_sharded

if TYPE_CHECKING:
    from steppe.optim._base import RuleOptimizer


def check_shards(optimizer: "RuleOptimizer") -> None:
    """Refuse a sharded parameter that the optimizer cannot step.

    Raises
    ------
    RuntimeError
        Its group is differentiable, or this process does not belong to its device mesh.
    """
    param: Any
    for index, (param, group) in enumerate(optimizer._all()):
        if not is_sharded(param):
            continue
        name = f"{optimizer._place(index)}, shape {tuple(param.shape)}"
        if group["differentiable"]:
            raise RuntimeError(
                f"differentiable=True does not take sharded parameters: {name}; use plain tensors"
            )
        if not is_member(param):
            raise RuntimeError(
                f"this process has no part of {name}, on {param.device_mesh}: expected optimizers "
                "that hold the same parameters in all processes of a mesh, and in no others"
            )
