"""The tensors that kernels find at fixed addresses, and what has been verified of them.

A batch keeps them from step to step; the plan asks whether somebody has put another tensor into a
state, and dispatch whether the facts of each still hold.
"""

from copy import copy
from functools import cache
from itertools import chain, compress
from operator import call, itemgetter
from typing import Any

import numpy as np
from torch import Tensor

from steppe._engines.base import tensor_facts
from steppe._engines.base.memory_layout import is_plain
from steppe._engines.base.param_row import ParamRow
from steppe._engines.base.tensor_facts import Fact
from steppe._shared.array_types import Flags, Integers
from steppe._shared.identity import are_same


class HeldTensors:
    """Parameters and state of some rows.

    Parameters
    ----------
    rows
        The parameters.
    names
        Of each row, the state that kernels find at a fixed address.
    others
        Of each row, other state that must stay the tensor that it is.

    Attributes
    ----------
    names
        As above.
    tensors
        The parameters, then the state of the first row, of the second, and so on.
    dims
        The largest number of dimensions.
    is_plain
        Whether all are torch's own tensors, with memory that may be looked up.
    facts
        What was verified of each tensor, in :class:`steppe._engines.base.tensor_facts.Fact`'s
        columns. While facts read anew are equal, so are shapes, formats and layouts.
    spans, items
        How many bytes each tensor spans, and one of its elements takes.
    occupied
        Where the tensors begin in memory, in order; and the furthest end of those up to each, then
        0, that of none.
    """

    def __init__(
        self, rows: list[ParamRow], names: list[tuple[str, ...]], others: list[tuple[str, ...]]
    ) -> None:
        self._rows, self.names = rows, names
        self._states = [row.state for row in rows]
        self._readers = [_reader(own, rest) for own, rest in zip(names, others, strict=True)]
        self.has_unusual = any(row.is_unusual for row in rows)
        self._found = self._state()
        # The row whose each tensor of the state is.
        self._owner = np.arange(len(rows)).repeat([*map(len, names)])
        self.tensors = self._tensors()
        self.is_plain = all(map(is_plain, self.tensors))
        self.dims = max(tensor.dim() for tensor in self.tensors)
        self.facts: Integers = np.zeros((0, 0), dtype=np.int64)
        self.spans = self.items = np.zeros(0, dtype=np.int64)
        self.occupied = (self.spans, np.zeros(1, dtype=np.int64))

    def _state(self) -> list[Tensor]:
        return [*chain.from_iterable(map(call, self._readers, self._states))]

    def _tensors(self) -> list[Tensor]:
        params = [row.param for row in self._rows]
        parts = [
            row.parts[name]
            for row, names in zip(self._rows, self.names, strict=True)
            for name in names
        ]
        return params + parts

    def are_same(self) -> bool:
        """Whether nobody has put another tensor into the state of any row, or taken one out."""
        try:
            return are_same(self._state(), self._found)
        except KeyError:
            return False

    def refresh(self) -> None:
        """Look anew at complex and sharded tensors, whose views and parts are made in each step."""
        for row in self._rows:
            row.refresh()
        self.tensors = self._tensors()

    def note(self, facts: Integers) -> None:
        """Keep the facts of tensors that have been checked."""
        self.items = np.array([tensor.element_size() for tensor in self.tensors], dtype=np.int64)
        self.spans = tensor_facts.span(self.tensors, facts, self.items)
        self.renew(facts)

    def renew(self, facts: Integers) -> None:
        """Keep the facts of the same tensors, which lie elsewhere now, without overlaps."""
        self.facts = facts
        addresses = facts[:, Fact.ADDRESS]
        order = addresses.argsort()
        order = order[self.spans[order] > 0]
        begins = addresses[order]
        ends = np.maximum.accumulate(begins + self.spans[order])
        self.occupied = (begins, np.append(ends, 0))

    def pick(self, is_picked: Flags) -> "HeldTensors":
        """Return those of some rows, with what was verified of them."""
        part = copy(self)
        in_state = is_picked[self._owner]
        part._rows = [*compress(self._rows, is_picked)]
        part.names = [*compress(self.names, is_picked)]
        lines = np.concatenate([is_picked, in_state])
        part.tensors = [*compress(self.tensors, lines)]
        part.spans, part.items = self.spans[lines], self.items[lines]
        part.renew(self.facts[lines])
        return part


@cache
def _reader(names: tuple[str, ...], others: tuple[str, ...]) -> Any:
    # Twice, since of one name alone it would return no tuple.
    return itemgetter(*("step", "step", *names, *others))
