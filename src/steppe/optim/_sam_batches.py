"""The parameters that SAM moves, sorted into batches that are worked on as one flat tensor.

Ten thousand small tensors are so moved by some dozen operations. Large ones are moved piece by
piece, so that temporaries stay in a core's cache.
"""

from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from steppe._engines import PIECE, ShardGroup, is_plain, share_memory

# Elements of a batch on an accelerator: temporaries take four times as much memory.
_ON_DEVICE = 1 << 24


class Kind(NamedTuple):
    """What the members of a batch have in common.

    Attributes
    ----------
    rho
        How far e goes along, with the sign.
    is_adaptive
        Whether the metric is the parameter itself.
    is_conditioned
        Whether it is the root of a preconditioner.
    shard_group
        Who holds the other parts of the parameters.
    alone
        The number of a member that is no other's like; None of others.
    """

    rho: float
    is_adaptive: bool
    is_conditioned: bool
    shard_group: ShardGroup | None
    alone: int | None


class Member(NamedTuple):
    """A parameter that moves.

    Attributes
    ----------
    number
        Its position among those that move.
    param
        As the user has it.
    part
        What this process holds of it.
    kind
        How it moves.
    along
        What e goes along: the gradient or the base's momentum; None at random.
    preconditioner
        What the base multiplies momenta by; None where the metric has no use for it, or the base
        none yet.

    The tensors beside the parameter are this process's parts of them, as real numbers.
    """

    number: int
    param: Tensor
    part: Tensor
    kind: Kind
    along: Tensor | None = None
    preconditioner: Tensor | None = None


class Members(NamedTuple):
    """The parameters that move.

    Attributes
    ----------
    all
        They.
    are_apart
        Whether it is known that none share memory.
    """

    all: list[Member]
    are_apart: bool


def side_by_side(members: Members) -> list[list[Member]]:
    """Sort members into groups of one number format and device, which are copied together.

    Those of a kind follow one another. If some members share memory each is a group, so that it
    moves from where the one before it has come to.
    """
    kinds: dict[Any, list[Member]] = {}
    for member in members.all:
        place = member.part.device, member.part.dtype
        kinds.setdefault((place, member.kind), []).append(member)
    groups: dict[Any, list[Member]] = {}
    for (place, _), alike in kinds.items():
        groups.setdefault(place, []).extend(alike)
    parts = [] if members.are_apart else [member.part for member in members.all]
    if share_memory([*filter(is_plain, parts)]):
        return [[member] for group in groups.values() for member in group]
    return [*groups.values()]


def cut(group: Iterable[Member]) -> list[list[Member]]:
    """Cut a group into batches of members of a kind, of bounded size; a large one is alone."""
    batches: list[list[Member]] = []
    for _, alike in groupby(group, attrgetter("kind")):
        room = -1
        for member in alike:
            size = member.part.numel()
            if size > room:
                batches.append([])
                room = PIECE if member.part.device.type == "cpu" else _ON_DEVICE
            batches[-1].append(member)
            room -= size
    return batches


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """Return the elements of tensors in one dimension, each in the order of its dimensions."""
    if len(tensors) == 1:
        return tensors[0].reshape(-1)
    elements: Tensor = torch._utils._flatten_dense_tensors(tensors)  # type: ignore[no-untyped-call]
    return elements


def write(elements: Tensor, parts: list[Tensor]) -> None:
    """Write elements in one dimension into tensors."""
    pieces = torch.split_with_sizes(elements, [part.numel() for part in parts])
    torch._foreach_copy_(parts, [*map(Tensor.view_as, pieces, parts)])
