"""The tensors that one step touches, sorted into batches that one kernel can run."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import is_
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from steppe._engines.base.method import (
    BIRTHS,
    KEYS,
    MEAN,
    REPLACEMENTS,
    Method,
    needs_global_norm,
    needs_tensor_norm,
    slot_name,
)
from steppe._engines.base.number_formats import BLOCK, format_of, rounds_stochastically
from steppe._engines.base.sharding import (
    LocalShard,
    ShardGroup,
    is_sharded,
    local_part,
    local_shard_of,
    numbered,
    real,
)
from steppe._shared.array_types import Integers

Group = dict[str, Any]
State = dict[str, Tensor]


@dataclass(slots=True)
class ParamRow:
    """One parameter in this step, as this process holds it; a complex one as its real view.

    Attributes
    ----------
    index
        Its position among all parameters of the optimizer.
    param, grad
        The parameter and its gradient.
    state
        Its state in the optimizer.
    group
        The options of its group.
    shard
        Which part of the parameter this process holds.
    parts
        The state, of which sharded tensors are what this process holds of them.
    """

    index: int
    param: Tensor
    grad: Tensor
    state: State
    group: Group
    shard: LocalShard
    parts: State
    _localised: list[Tensor] = field(default_factory=list)

    @classmethod
    def of(
        cls, index: int, param: Tensor, state: State, group: Group, grad: Tensor | None = None
    ) -> Self:
        """Make the row of a parameter; without a gradient, of as much as can be known."""
        here = real(local_part(param))
        row = cls(index, here, here, state, group, local_shard_of(param), state)
        row.refresh(param, grad)
        return row

    def refresh(self, param: Tensor, grad: Tensor | None = None) -> None:
        """Look anew at what may be exchanged from step to step."""
        if is_sharded(param) and not _are(self.state.values(), self._localised):
            self.parts = {name: local_part(value) for name, value in self.state.items()}
            self._localised = list(self.state.values())
        if grad is not None:
            self.param, self.grad = local_param_and_grad(param, grad)

    def part(self, name: str) -> Tensor:
        """Return a tensor of the state; a complex one as its real view."""
        return real(self.parts[name])

    @property
    def capacity(self) -> int:
        """Number of slots of the parameter's buffer; 0 without one."""
        return self.state[KEYS].numel() if KEYS in self.state else 0

    def formats(self, method: Method) -> tuple[str, ...]:
        """Return the number formats of the state, and of the slots where there are some."""
        names = [*method.state, *([slot_name(0)] if self.capacity else [])]
        return tuple(format_of(name, self.part(name)) for name in names if name in self.state)


class EngineRequest(NamedTuple):
    """What a group asks of the engines. Rows that ask the same may share a launch."""

    method: Method
    fused: bool | None
    capturable: bool
    differentiable: bool


def _nothing() -> Tensor:
    return torch.empty(0)


@dataclass
class ParamBatch:
    """Rows that share a request, a device, number formats, a shard group and a capacity on the CPU.

    What does not change while the rows are the same is found out once, when the batch is made: a
    step reads it as plain attributes.

    Attributes
    ----------
    request
        The method, and how to run it.
    device
        Where all parameters lie.
    formats
        Of the state, and of the slots; those of the parameters are alike too.
    shard_group
        The processes that hold the other parts of the parameters; None where this one holds all.
    rows
        The parameters; at least one.
    steps
        Their step counts side by side, this step included; each row's ``step`` is a view of it.
        Empty where CUDA graphs may hold on to each row's own.
    keys, births, replacements
        Likewise those of their buffers, on the CPU; empty without buffers.
    means
        Likewise the means of second moments, on the CPU and for methods that need them.
    unscale
        What gradients are multiplied by before anything else: 1 over a GradScaler's scale.
    amp
        A GradScaler's scale, and whether it found an infinity; for engines that read them on the
        device.
    cache
        What an engine keeps as long as the rows are the same.
    method
        The request's.
    capacity
        Number of slots of the first row's buffer, and on the CPU of each; 0 without one.
    groups, group_of_row
        The rows' parameter groups, and the position of each row's among them.
    needs_global_norm, needs_tensor_norm
        Whether a row needs the norm of all gradients; of its own.
    """

    request: EngineRequest
    device: torch.device
    formats: tuple[str, ...]
    shard_group: ShardGroup | None
    rows: list[ParamRow]
    steps: Tensor = field(default_factory=_nothing)
    keys: Tensor = field(default_factory=_nothing)
    births: Tensor = field(default_factory=_nothing)
    replacements: Tensor = field(default_factory=_nothing)
    means: Tensor = field(default_factory=_nothing)
    unscale: float = 1.0
    amp: tuple[Tensor | None, Tensor | None] | None = None
    cache: dict[str, Any] = field(default_factory=dict)
    method: Method = field(init=False)
    capacity: int = field(init=False)
    groups: list[Group] = field(init=False)
    group_of_row: Integers = field(init=False)
    needs_global_norm: bool = field(init=False)
    needs_tensor_norm: bool = field(init=False)

    def __post_init__(self) -> None:
        """Find out what the rows have in common."""
        self.method = self.request.method
        self.capacity = self.rows[0].capacity
        members = {id(row.group): row.group for row in self.rows}
        position = {key: i for i, key in enumerate(members)}
        self.groups = list(members.values())
        self.group_of_row = np.array([position[id(row.group)] for row in self.rows])
        self.needs_global_norm = any(needs_global_norm(self.method, group) for group in self.groups)
        self.needs_tensor_norm = any(needs_tensor_norm(self.method, group) for group in self.groups)

    @property
    def rounds_stochastically(self) -> bool:
        """Whether something is rounded stochastically."""
        return any(map(rounds_stochastically, (format_of("", self.rows[0].param), *self.formats)))

    def chunks(self, length: int) -> Integers:
        """Cut all rows into chunks; where blocks matter, as the whole tensors are cut.

        Returns
        -------
        array
            Of each chunk: its row, its first element and number of elements, where that element
            lies in the whole tensor, and how many blocks come before it here.
        """
        if self.shard_group is not None and self.rounds_stochastically:
            shares = [row.shard.cut(length, BLOCK) for row in self.rows]
            parts = [np.stack([np.full_like(x.first, i), *x], 1) for i, x in enumerate(shares)]
            return np.concatenate(parts)
        sizes = np.array([row.param.numel() for row in self.rows], dtype=np.int64)
        row, nth = numbered(-(-sizes // length))
        first = nth * length
        size = np.minimum(length, sizes[row] - first)
        return np.stack([row, first, size, first, first // BLOCK], axis=1)

    @property
    def on_device(self) -> bool:
        """Whether scalars and decisions must stay tensors.

        So it is under CUDA graphs, where gradients flow through the step, and where a decision
        would otherwise have to be read back from an accelerator.
        """
        reads_accelerator = self.method.buffer is not None and self.device.type != "cpu"
        return self.request.capturable or self.request.differentiable or reads_accelerator


def batches_of(rows: Iterable[ParamRow], requests: dict[int, EngineRequest]) -> list[ParamBatch]:
    """Sort rows into batches; ``requests`` are the groups', by the group's identity."""
    found: dict[tuple[Any, ...], list[ParamRow]] = {}
    for row in rows:
        request = requests[id(row.group)]
        formats, device = row.formats(request.method), row.param.device
        capacity = row.capacity if device.type == "cpu" else None
        shard_group = row.shard.shard_group
        key = request, device, formats, shard_group, capacity, row.param.dtype
        found.setdefault(key, []).append(row)
    return [
        ParamBatch(request, device, formats, shard_group, members)
        for (request, device, formats, shard_group, *_), members in found.items()
    ]


# What lies side by side, by its name in the state: the batch's attribute.
_PACKED = {KEYS: "keys", BIRTHS: "births", REPLACEMENTS: "replacements", MEAN: "means"}


class Plan:
    """The batches of a step, kept as long as the same parameters have gradients.

    ``grad_scale`` and ``found_inf`` are what a GradScaler leaves to the engines: what gradients
    are to be divided by, and whether one is not finite, so that the step is to be skipped.

    Parameters
    ----------
    members
        Every parameter of the optimizer and its group.
    grads
        The gradients, None where there is none.
    states
        The optimizer's state, complete for parameters with gradients.
    requests
        What each group requests, by the group's identity.
    """

    def __init__(
        self,
        members: Sequence[tuple[Tensor, Group]],
        grads: Sequence[Tensor | None],
        states: Mapping[Tensor, State],
        requests: dict[int, EngineRequest],
    ) -> None:
        self._params = [param for param, _ in members]
        self._absent = [grad is None for grad in grads]
        self._states = list(states.values())
        self.rows = [
            ParamRow.of(index, param, states[param], group, grads[index])
            for index, (param, group) in enumerate(members)
            if grads[index] is not None
        ]
        self._unusual = [row for row in self.rows if _is_unusual(self._params[row.index])]
        self.batches = batches_of(self.rows, requests)
        for batch in self.batches:
            if not batch.request.capturable:
                _pack(batch)
        self._packed = [
            (state, name, state[name])
            for state in self._states
            # A user's own entries are no dictionaries of tensors.
            for name in (state if isinstance(state, dict) else ())
        ]
        self._steps = [row.state["step"] for row in self.rows]
        self._step_addresses = list(map(Tensor.data_ptr, self._steps))
        self.grad_scale: Tensor | None = None
        self.found_inf: Tensor | None = None

    def takes(
        self,
        params: Sequence[Tensor],
        grads: Sequence[Tensor | None],
        states: Mapping[Tensor, State],
    ) -> bool:
        """Take the gradients of a step if the plan is still the right one for it.

        It is for the parameters and states that it was made for, if nobody has replaced any, and
        if the same parameters have gradients.
        """
        is_right = (
            _are(params, self._params)
            and [grad is None for grad in grads] == self._absent
            and _are(states.values(), self._states)
            and all(state.get(name) is value for state, name, value in self._packed)
            # A copy of the optimizer that shares its state may have packed it anew.
            and list(map(Tensor.data_ptr, self._steps)) == self._step_addresses
        )
        if is_right:
            self.set_gradients(grads)
        return is_right

    def set_gradients(self, grads: Sequence[Tensor | None]) -> None:
        """Give each row its gradient of this step."""
        for row, grad in zip(self.rows, [grad for grad in grads if grad is not None], strict=True):
            row.grad = grad
        for row in self._unusual:
            row.refresh(self._params[row.index], row.grad)


def _is_unusual(param: Tensor) -> bool:
    """Whether a parameter is not in its row as it is."""
    return param.is_complex() or is_sharded(param)


def local_param_and_grad(param: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Return what this process holds of a parameter and its gradient, as real numbers."""
    if is_sharded(param):
        grad = _sharded_alike(grad, param)
    return real(local_part(param)), real(local_part(grad))


def _sharded_alike(grad: Any, param: Any) -> Tensor:
    """Return a gradient sharded as its parameter is: others may come along."""
    if grad.placements == param.placements:
        whole: Tensor = grad
        return whole
    moved: Tensor = grad.redistribute(param.device_mesh, param.placements)
    return moved


def _are(found: Collection[Any], expected: Collection[Any]) -> bool:
    return len(found) == len(expected) and all(map(is_, found, expected))


def _pack(batch: ParamBatch) -> None:
    """Lay step counts side by side, so that reading or changing all is one operation; keys too.

    Where some step counts have come to lie on a device, as a GradScaler makes them, all do.
    """
    batch.steps = _side_by_side(batch, "step")
    if batch.device.type != "cpu" or batch.request.differentiable:
        return
    for name, attribute in _PACKED.items():
        if name in batch.rows[0].state:
            setattr(batch, attribute, _side_by_side(batch, name))


def _side_by_side(batch: ParamBatch, name: str) -> Tensor:
    parts = [row.state[name] for row in batch.rows]
    device = next((part.device for part in parts if part.device.type != "cpu"), None)
    packed = torch.stack([part.to(device) for part in parts])
    # Only the storage moves, not the tensor: a state_dict taken before stays the live one.
    for part, view in zip(parts, packed.unbind(), strict=True):
        part.data = view
    return packed
