"""The tensors that one step touches, sorted into batches that one kernel can run."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from operator import is_
from typing import Any, NamedTuple

import torch
from torch import Tensor

from steppe.engines.kernel import KEYS, Kernel, slot_name
from steppe.engines.storage import format_of

Group = dict[str, Any]
State = dict[str, Tensor]


@dataclass(slots=True)
class Row:
    """One parameter in this step. A complex parameter stands here as its real view.

    ``number`` is its place among all parameters of the optimizer.
    """

    number: int
    param: Tensor
    grad: Tensor
    state: State
    group: Group

    def part(self, name: str) -> Tensor:
        """Return a tensor of the state; a complex one as its real view."""
        return real(self.state[name])

    @property
    def capacity(self) -> int:
        """Number of slots of the parameter's buffer; 0 without one."""
        return self.state[KEYS].numel() if KEYS in self.state else 0

    def formats(self, kernel: Kernel) -> tuple[str, ...]:
        """Return the number formats of the state, and of the slots where there are some."""
        names = [*kernel.state, *([slot_name(0)] if self.capacity else [])]
        return tuple(format_of(name, self.part(name)) for name in names if name in self.state)


class Demand(NamedTuple):
    """What a group asks of the engines. Rows that ask the same may share a launch."""

    kernel: Kernel
    fused: bool | None
    capturable: bool
    differentiable: bool


@dataclass
class Batch:
    """Rows that share a demand, a device and number formats.

    Attributes
    ----------
    demand
        The kernel, and how to run it.
    device
        Where all parameters lie.
    formats
        Of the state, and of the slots; those of the parameters are alike too.
    rows
        The parameters.
    steps
        Their step counts side by side, this step included; each row's ``step`` is a view of it.
        Empty where CUDA graphs may hold on to each row's own.
    unscale
        What gradients are multiplied by before anything else: 1 over a GradScaler's scale.
    amp
        A GradScaler's scale, and whether it found an infinity; for engines that read them on the
        device.
    cache
        What an engine keeps as long as the rows are the same.
    """

    demand: Demand
    device: torch.device
    formats: tuple[str, ...] = ()
    rows: list[Row] = field(default_factory=list)
    steps: Tensor = field(default_factory=lambda: torch.empty(0))
    unscale: float = 1.0
    amp: tuple[Tensor | None, Tensor | None] | None = None
    cache: dict[str, Any] = field(default_factory=dict)

    @property
    def kernel(self) -> Kernel:
        """The method."""
        return self.demand.kernel

    @property
    def on_device(self) -> bool:
        """Whether scalars and decisions must stay tensors.

        So it is under CUDA graphs, where gradients flow through the step, and where a decision
        would otherwise have to be read back from an accelerator.
        """
        reads_accelerator = self.kernel.buffer is not None and self.device.type != "cpu"
        return self.demand.capturable or self.demand.differentiable or reads_accelerator

    def count(self) -> None:
        """Count this step."""
        if self.demand.capturable:
            torch._foreach_add_([row.state["step"] for row in self.rows], 1.0)
        else:
            self.steps += 1.0


def real(tensor: Tensor) -> Tensor:
    """Return a complex tensor's real view, and any other tensor itself."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def batches(rows: Iterable[Row], demands: dict[int, Demand]) -> list[Batch]:
    """Sort rows into batches; ``demands`` are the groups', by the group's identity."""
    found: dict[tuple[Any, ...], Batch] = {}
    for row in rows:
        demand = demands[id(row.group)]
        key = demand, row.param.device, row.formats(demand.kernel), row.param.dtype
        if key not in found:
            found[key] = Batch(*key[:3])
        found[key].rows.append(row)
    return list(found.values())


class Plan:
    """The batches of a step, kept as long as the same parameters have gradients.

    Parameters
    ----------
    numbers, params, states, groups
        One each for every parameter with a gradient; the states are complete.
    demands
        What each group demands, by the group's identity.
    """

    def __init__(
        self,
        numbers: Sequence[int],
        params: Sequence[Tensor],
        states: Sequence[State],
        groups: Sequence[Group],
        demands: dict[int, Demand],
    ) -> None:
        self._params, self._states, self._groups = params, states, groups
        self.rows = [
            Row(number, real(param), param, state, group)
            for number, param, state, group in zip(numbers, params, states, groups, strict=True)
        ]
        self.batches = batches(self.rows, demands)
        for batch in self.batches:
            if not batch.demand.capturable:
                _pack_steps(batch)
        self._steps = [state["step"] for state in states]

    def fits(
        self, params: Sequence[Tensor], states: Sequence[State | None], groups: Sequence[Group]
    ) -> bool:
        """Whether these are the parameters, states and groups it was made for, untouched."""
        return (
            len(params) == len(self._params)
            and all(map(is_, params, self._params))
            and all(map(is_, states, self._states))
            and all(map(is_, groups, self._groups))
            and all(map(is_, [state["step"] for state in self._states], self._steps))
        )

    def release_gradients(self) -> None:
        """Let go of the gradients, which would otherwise lie in memory beside the next ones."""
        for row in self.rows:
            row.grad = row.param

    def set_gradients(self, grads: Sequence[Tensor]) -> None:
        """Take the gradients of this step."""
        for row, param, grad in zip(self.rows, self._params, grads, strict=True):
            row.param, row.grad = real(param), real(grad)


def _pack_steps(batch: Batch) -> None:
    """Lay the step counts side by side, so that counting and reading them is one operation.

    Where some have come to lie on a device, as a GradScaler makes them, all do.
    """
    counts = [row.state["step"] for row in batch.rows]
    device = next((count.device for count in counts if count.device.type != "cpu"), None)
    batch.steps = torch.stack([count.to(device) for count in counts])
    for row, step in zip(batch.rows, batch.steps.unbind(), strict=True):
        row.state["step"] = step
