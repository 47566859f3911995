"""One parameter of an optimizer, as this process holds it, and what makes it unfit for a step.

Batches are made of rows. Optimizers read state through them for diagnostics, too.
"""

from dataclasses import dataclass, field
from typing import Any, Self

from torch import Tensor

from steppe._engines.base.memory_layout import is_traced, memory_objection, write_objection
from steppe._engines.base.method import KEYS, NEVER_PARAM_SHAPED, SLOT_SUM, Method, slot_name
from steppe._engines.base.number_formats import (
    PARAM_ERROR,
    format_of,
    scale_name,
    takes_error,
)
from steppe._engines.base.sharding import (
    LocalShard,
    is_sharded,
    local_part,
    local_shard_of,
    real,
)
from steppe._shared.identity import are_same

Group = dict[str, Any]
State = dict[str, Tensor]


@dataclass(slots=True)
class ParamRow:
    """One parameter, as this process holds it; a complex one as its real view.

    Attributes
    ----------
    index
        Its position among all parameters of the optimizer.
    whole, param
        The parameter as the user has it, and what of it a step changes.
    state
        Its state in the optimizer.
    group
        The options of its group.
    shard
        Which part of the parameter this process holds.
    parts
        The state, of which sharded tensors are what this process holds of them.
    place
        Where the parameter stands, in the user's words.
    """

    index: int
    whole: Tensor
    param: Tensor
    state: State
    group: Group
    shard: LocalShard
    parts: State
    place: str = ""
    _localised: list[Tensor] = field(default_factory=list)

    @classmethod
    def of(cls, index: int, param: Tensor, state: State, group: Group, place: str = "") -> Self:
        """Make the row of a parameter."""
        part, shard = real(local_part(param)), local_shard_of(param)
        row = cls(index, param, part, state, group, shard, state, place or f"parameter {index}")
        row.refresh()
        return row

    @property
    def is_unusual(self) -> bool:
        """Whether the parameter is not in its row as it is."""
        return self.whole.is_complex() or is_sharded(self.whole)

    def refresh(self) -> None:
        """Look anew at what may be exchanged from step to step.

        Raises
        ------
        RuntimeError
            The parameter is a lazy conjugate: what is written into its real view would be lost.
        """
        if not self.is_unusual:
            return
        if is_sharded(self.whole) and not are_same(self.state.values(), self._localised):
            self.parts = {name: local_part(value) for name, value in self.state.items()}
            self._localised = list(self.state.values())
        part = local_part(self.whole)
        refuse_lazy(part, self.place)
        self.param = real(part)

    def part(self, name: str) -> Tensor:
        """Return a tensor of the state; a complex one as its real view."""
        return real(self.parts[name])

    @property
    def capacity(self) -> int:
        """Number of slots of the parameter's buffer; 0 without one."""
        return self.state[KEYS].numel() if KEYS in self.state else 0

    @property
    def keeps_error(self) -> bool:
        """Whether the state has what the parameter's number format lacks of its number."""
        is_wanted = self.group.get("param_error") is not None and takes_error(self.param)
        return is_wanted and PARAM_ERROR in self.state

    @property
    def param_format(self) -> str:
        """Name of the parameter's number format."""
        return "bfloat24" if self.keeps_error else format_of("", self.param)

    def formats(self, method: Method) -> tuple[str, ...]:
        """Return the number formats of the state, and of the slots where there are some."""
        names = [*method.state, *([slot_name(0)] if self.capacity else [])]
        return tuple(format_of(name, self.part(name)) for name in names if name in self.state)

    def check(self, method: Method) -> None:
        """Refuse a parameter or state that no engine may step.

        Raises
        ------
        RuntimeError
            A tensor has no memory or must not be written into, the parameter lies in memory with
            its sign turned, or the state alone is fake. The message names the parameter, and what
            is to be done.
        """
        slots = map(slot_name, range(self.capacity))
        refuse_lazy(self.param, self.place)
        check_memory(self.param, self.place)
        names = [PARAM_ERROR, *method.state, *slots, SLOT_SUM]
        for name in (*names, *map(scale_name, names), *NEVER_PARAM_SHAPED):
            if name not in self.parts:
                continue
            value = self.part(name)
            if value.is_neg():
                self.parts[name] = self.state[name] = self.state[name].resolve_neg()
            check_memory(value, f"state {name!r} of {self.place}")
            if is_traced(value) and not is_traced(self.param):
                raise RuntimeError(
                    f"state {name!r} of {self.place}, shape {tuple(value.shape)}, is a "
                    f"{type(value).__name__} without numbers, and the parameter has numbers: make "
                    "and step a model inside or outside of FakeTensorMode and torch.func alike"
                )


def refuse_lazy(param: Tensor, place: str) -> None:
    """Refuse a parameter that is a view of its memory with other signs.

    Raises
    ------
    RuntimeError
        It is a lazy conjugate or negative: what is written into its real view would be lost, or
        have the wrong sign.
    """
    for is_lazy, kind, name in (
        (param.is_conj(), "conjugate", "conj"),
        (param.is_neg(), "negative", "neg"),
    ):
        if is_lazy:
            raise RuntimeError(
                f"{place}, shape {tuple(param.shape)}, is a lazy {kind} (is_{name}()), which "
                f"cannot be changed in place; use param.data = param.data.resolve_{name}()"
            )


def check_memory(tensor: Tensor, place: str) -> None:
    """Refuse a tensor that has no memory, or whose memory must not be written into.

    Raises
    ------
    RuntimeError
        It says why, and what is to be done.
    """
    if why := memory_objection(tensor) or write_objection(tensor):
        raise RuntimeError(f"{place}, shape {tuple(tensor.shape)}, {why}")
