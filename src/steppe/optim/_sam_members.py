"""Which parameters SAM moves, along what, and what cannot be moved.

:mod:`steppe.optim._sam_batches` sorts them.
"""

from itertools import compress
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from steppe._engines import (
    Group,
    ShardGroup,
    are_usual,
    check_memory,
    local_param_and_grad,
    memory_objection,
    shard_group_of,
)
from steppe.optim._sam_base_state import momenta, preconditioners
from steppe.optim._sam_batches import Kind, Member, Members
from steppe.optim._sam_perturbations import rho_name

_Directions = tuple[list[Tensor], list[Group], list[Tensor | None]]


def members_of(base: Optimizer, direction: str) -> Members:
    """Return the parameters of an optimizer that move in a direction, and along what.

    Raises
    ------
    RuntimeError
        A parameter cannot be written, or a gradient cannot be read.
    """
    params, groups, alongs = _directions(base, direction)
    diagonals = {} if direction == "random" else _preconditioners(base)
    is_usual = are_usual(params, [along for along in alongs if along is not None])
    parts, shard_groups = params, list[ShardGroup | None]([None] * len(params))
    if not is_usual:
        if direction == "gradient":
            alongs = [*map(_local_gradient, params)]
        parts = [local_param_and_grad(param, param)[0] for param in params]
        shard_groups = [*map(shard_group_of, params)]
        for param in params:
            check_memory(param, "a parameter")
    members, kinds = [], dict[Any, Kind]()
    for number, (param, group, part, along, shard_group) in enumerate(
        zip(params, groups, parts, alongs, shard_groups, strict=True)
    ):
        diagonal = diagonals.get(param)
        # At random, processes add up the numbers of one sharded parameter after the other, and
        # parameters of a batch together; but batches are not the same everywhere.
        alone = number if along is None and shard_group is not None else None
        # One object for all: of ten thousand more, Python's garbage collector takes 0.1 s.
        key = id(group), diagonal is not None, shard_group, alone
        if key not in kinds:
            kinds[key] = _kind(group, direction, *key[1:])
        members.append(Member(number, param, part, kinds[key], along, diagonal))
    return Members(members, are_apart=is_usual)


def _kind(group: Group, direction: str, *options: Any) -> Kind:
    # Along the momentum e goes down, where the base goes next; of groups that maximise the momentum
    # is that of −g. The gradient of those is that of minus the objective.
    is_against = direction == "momentum" or (direction == "gradient" and group.get("maximize"))
    rho = group[rho_name(group)] * (-1 if is_against else 1)
    return Kind(rho, group["metric"] == "adaptive", *options)


def _directions(base: Optimizer, direction: str) -> _Directions:
    """Return the parameters that move, the group of each, and what it moves along, or None."""
    groups = [group for group in base.param_groups for _ in group["params"]]
    params = [param for group in base.param_groups for param in group["params"]]
    if direction == "gradient":
        alongs = [param.grad for param in params]
        moves = [grad is not None for grad in alongs]
    elif direction == "momentum":
        known = momenta(base)
        alongs = [*map(known.get, params)]
        moves = [x is not None and p.requires_grad for x, p in zip(alongs, params, strict=True)]
    else:
        alongs = [None] * len(params)
        moves = [param.requires_grad for param in params]
    return [*compress(params, moves)], [*compress(groups, moves)], [*compress(alongs, moves)]


def _preconditioners(base: Optimizer) -> dict[Tensor, Tensor]:
    """Return those of groups in whose metric they are."""
    chosen = [g for g in base.param_groups if g["metric"] == "preconditioned"]
    if not chosen:
        return {}
    known = preconditioners(base)
    return {p: known[p] for group in chosen for p in group["params"] if p in known}


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
