"""Which parameters SAM moves, along what, and what cannot be moved.

:mod:`steppe.optim._sam_batches` sorts them.
"""

import torch
from torch import Tensor
from torch.optim import Optimizer

from steppe._engines import (
    Group,
    are_usual,
    check_memory,
    local_param_and_grad,
    memory_objection,
    shard_group_of,
)
from steppe.optim._sam_base_state import momenta, preconditioners
from steppe.optim._sam_batches import Kind, Member, Members
from steppe.optim._sam_perturbations import rho_name

# A parameter that moves, its group, the sign, and what it moves along; None at random.
_Direction = tuple[Tensor, Group, int, Tensor | None]


def members_of(base: Optimizer, direction: str) -> Members:
    """Return the parameters of an optimizer that move in a direction, and along what.

    Raises
    ------
    RuntimeError
        A parameter cannot be written, or a gradient cannot be read.
    """
    found = _directions(base, direction)
    alongs = [along for *_, along in found if along is not None]
    diagonals = {} if direction == "random" else _preconditioners(base)
    is_usual = are_usual([param for param, *_ in found], alongs)
    members = []
    for number, (param, group, sign, along) in enumerate(found):
        part, shard_group = param, None
        if not is_usual:
            if direction == "gradient":
                along = _local_gradient(param)
            part, shard_group = local_param_and_grad(param, param)[0], shard_group_of(param)
        diagonal = diagonals.get(param)
        # At random, processes add up the numbers of one sharded parameter after the other, and
        # parameters of a batch together; but batches are not the same everywhere.
        is_alone = along is None and shard_group is not None
        kind = Kind(
            group[rho_name(group)] * sign,
            group["metric"] == "adaptive",
            diagonal is not None,
            shard_group,
            number if is_alone else None,
        )
        members.append(Member(number, param, part, kind, along, diagonal))
    if not is_usual:
        for member in members:
            check_memory(member.param, "a parameter")
    return Members(members, are_apart=is_usual)


def _directions(base: Optimizer, direction: str) -> list[_Direction]:
    """Return each parameter that moves, its group, and what it moves along, with the sign."""
    owned = [(param, group) for group in base.param_groups for param in group["params"]]
    if direction == "random":
        return [(param, group, 1, None) for param, group in owned if param.requires_grad]
    if direction == "momentum":
        known = momenta(base)
        # Down, where the base goes next; of groups that maximise the momentum is that of −g.
        return [
            (param, group, -1, known[param])
            for param, group in owned
            if param in known and param.requires_grad
        ]
    return [
        (param, group, _uphill(group), grad)
        for param, group in owned
        if (grad := param.grad) is not None
    ]


def _preconditioners(base: Optimizer) -> dict[Tensor, Tensor]:
    """Return those of groups in whose metric they are."""
    chosen = [g for g in base.param_groups if g["metric"] == "preconditioned"]
    if not chosen:
        return {}
    known = preconditioners(base)
    return {p: known[p] for group in chosen for p in group["params"] if p in known}


def _uphill(group: Group) -> int:
    """Sign of the gradient: a group that maximises its objective minimises minus the objective."""
    return -1 if group.get("maximize") else 1


def _local_gradient(param: Tensor) -> Tensor:
    """Return what this process holds of a parameter's gradient; refuse one that cannot be used."""
    grad, shape = param.grad, tuple(param.shape)
    assert grad is not None
    if grad.layout != torch.strided:
        raise RuntimeError(
            f"SAM does not take {grad.layout} gradients: parameter of shape {shape}; use dense "
            "ones, e.g. Embedding(sparse=False)"
        )
    if tuple(grad.shape) != shape:
        raise RuntimeError(
            f"a parameter has shape {shape}, its gradient {tuple(grad.shape)}: expected the same "
            "shape; compute the gradient anew (zero_grad, then backward)"
        )
    if why := memory_objection(grad):
        raise RuntimeError(f"the gradient of a parameter, shape {shape}, {why}")
    return local_param_and_grad(param, grad)[1]
