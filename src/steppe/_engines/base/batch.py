"""Batches: the parameters that one kernel can step together, and what they have in common.

The plan sorts an optimizer's parameters into batches; dispatch chooses an engine for each, and the
engine steps it.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from steppe._engines.base.held_tensors import HeldTensors
from steppe._engines.base.memory_layout import (
    is_plain,
    is_traced,
    param_objection,
    share_memory,
)
from steppe._engines.base.method import (
    BIRTHS,
    KEYS,
    MEAN,
    REPLACEMENTS,
    SLOT_SUM,
    Method,
    needs_global_norm,
    needs_tensor_norm,
    slot_name,
)
from steppe._engines.base.number_formats import (
    BLOCK,
    EIGHT_BITS,
    PARAM_ERROR,
    rounds_stochastically,
    scale_name,
)
from steppe._engines.base.param_row import Group, ParamRow
from steppe._engines.base.sharding import ShardGroup, numbered
from steppe._shared.array_types import Integers

#: What lies side by side, by its name in the state: the batch's attribute. The step counts always
#: do; the others on the CPU, for methods that have them.
PACKED = {
    "step": "steps",
    KEYS: "keys",
    BIRTHS: "births",
    REPLACEMENTS: "replacements",
    MEAN: "means",
}


class EngineRequest(NamedTuple):
    """What a group asks of the engines. Rows that ask the same may share a launch."""

    method: Method
    fused: bool | None
    capturable: bool
    differentiable: bool


def nothing() -> Tensor:
    """Return an empty tensor that NumPy takes, whatever torch's default format and device are."""
    return torch.empty(0, dtype=torch.float64, device="cpu")


@dataclass(eq=False)
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
    param_format
        That of the parameters.
    shard_group
        The processes that hold the other parts of the parameters; None where this one holds all.
    rows
        The parameters; at least one.
    grads, grad_addresses
        Their gradients in this step, as this process holds them, none between steps; and where
        these lie.
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
    advanced
        How many of the rows, in their order, the step at hand has begun to change.
    cache
        What an engine keeps as long as the rows are the same.
    engine
        The engine that was chosen for the batch, if one was.
    parent, picked
        The batch of which this one has only the rows that have gradients, and which these are; None
        and nothing where it has all.
    copied
        By the batch's attribute, what does not lie side by side in the state: each step copies it
        here and back. So it is with tensors in shared memory, which other processes look at.
    is_gathered
        Whether there is a parent, or something to copy.
    params, indices, sizes
        The parameters as the user has them, their positions among all of the optimizer, and how
        many elements this process holds of each.
    method
        The request's.
    capacity
        Number of slots of the first row's buffer, and on the CPU of each; 0 without one.
    keeps_sum
        Whether the slots are in full precision: the state then has their sum.
    groups, group_of_row
        The rows' parameter groups, and the position of each row's among them.
    needs_global_norm, needs_tensor_norm
        Whether a row needs the norm of all gradients; of its own.
    held
        The tensors that kernels find at fixed addresses; None before there is a state.
    """

    request: EngineRequest
    device: torch.device
    formats: tuple[str, ...]
    shard_group: ShardGroup | None
    rows: list[ParamRow]
    grads: list[Tensor] = field(default_factory=list)
    grad_addresses: Integers = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    steps: Tensor = field(default_factory=nothing)
    keys: Tensor = field(default_factory=nothing)
    births: Tensor = field(default_factory=nothing)
    replacements: Tensor = field(default_factory=nothing)
    means: Tensor = field(default_factory=nothing)
    unscale: float = 1.0
    amp: tuple[Tensor | None, Tensor | None] | None = None
    advanced: int = 0
    cache: dict[str, Any] = field(default_factory=dict)
    engine: Any = None
    parent: "ParamBatch | None" = None
    picked: Tensor = field(default_factory=nothing)
    copied: dict[str, list[Tensor]] = field(default_factory=dict)
    is_gathered: bool = False
    held: HeldTensors | None = None
    params: list[Tensor] = field(init=False)
    indices: Integers = field(init=False)
    sizes: Integers = field(init=False)
    method: Method = field(init=False)
    capacity: int = field(init=False)
    keeps_sum: bool = field(init=False)
    groups: list[Group] = field(init=False)
    group_of_row: Integers = field(init=False)
    param_format: str = field(init=False)
    needs_global_norm: bool = field(init=False)
    needs_tensor_norm: bool = field(init=False)

    def __post_init__(self) -> None:
        """Find out what the rows have in common."""
        self.method = self.request.method
        self.params = [row.whole for row in self.rows]
        self.indices = np.array([row.index for row in self.rows], dtype=np.int64)
        self.sizes = np.array([row.param.numel() for row in self.rows], dtype=np.int64)
        self.capacity = self.rows[0].capacity
        self.param_format = self.rows[0].param_format
        self.keeps_sum = self.capacity > 0 and self.formats[-1] in ("float32", "float64")
        members = {id(row.group): row.group for row in self.rows}
        position = {key: i for i, key in enumerate(members)}
        self.groups = list(members.values())
        self.group_of_row = np.array([position[id(row.group)] for row in self.rows])
        self.note_norms()
        if self.held is None and all(row.state for row in self.rows):
            names = [self._names(row) for row in self.rows]
            others = [tuple(name for name in PACKED if name in row.state) for row in self.rows]
            self.held = HeldTensors(self.rows, names, others)

    def note_norms(self) -> None:
        """Find out which norms the groups need."""
        self.needs_global_norm = any(needs_global_norm(self.method, group) for group in self.groups)
        self.needs_tensor_norm = any(needs_tensor_norm(self.method, group) for group in self.groups)

    def _names(self, row: ParamRow) -> tuple[str, ...]:
        """Return the names of a row's state that kernels find at a fixed address."""
        slots = [slot_name(i) for i in range(row.capacity)]
        error = [PARAM_ERROR] if row.keeps_error else []
        names = [*error, *self.method.state, SLOT_SUM, *slots]
        if not EIGHT_BITS.isdisjoint(self.formats):
            names += [scale_name(name) for name in names]
        return tuple(name for name in names if name in row.state)

    def tensor_objection(
        self, of_state: Callable[["ParamBatch", ParamRow], str | None]
    ) -> str | None:
        """Say why a kernel cannot take the tensors; None if it can.

        Parameters
        ----------
        of_state
            Says so of a row's state.
        """
        if self.held is not None and not self.held.is_plain:
            return "a parameter or its state is of a subclass of Tensor"
        for row in self.rows:
            if why := param_objection(row.param):
                return why
            if row.state and (why := of_state(self, row)):
                return why
        tensors = [row.param for row in self.rows] if self.held is None else self.held.tensors
        # Threads step rows at once: of two that write the same number, one would be lost.
        if all(map(is_plain, tensors)) and share_memory(tensors):
            return "parameters or their state share memory"
        return None

    @property
    def rounds_stochastically(self) -> bool:
        """Whether something is rounded stochastically."""
        return any(map(rounds_stochastically, (self.param_format, *self.formats)))

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
        sizes = self.sizes
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
        if is_traced(row.param):
            request = request._replace(capturable=True)  # which reads nothing
        formats, device = row.formats(request.method), row.param.device
        capacity = row.capacity if device.type == "cpu" else None
        shard_group = row.shard.shard_group
        key = request, device, formats, shard_group, capacity, row.param_format
        found.setdefault(key, []).append(row)
    return [
        ParamBatch(request, device, formats, shard_group, members)
        for (request, device, formats, shard_group, *_), members in found.items()
    ]
