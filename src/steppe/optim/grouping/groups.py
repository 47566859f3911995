"""The list of groups that an optimizer takes, and its table."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from steppe._shared.messages import plural, shortened
from steppe._shared.notebook_tables import html_table

Group = dict[str, Any]

_RESERVED = ("params", "param_names")
_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")
_KINDS_SHOWN = 4


class ParamGroups(list[Group]):
    """Groups of named parameters, as optimizers of torch take them, with a readable table.

    ``print(groups)`` shows the options of each group, how many tensors and numbers it has, and
    their names, with ``*`` for numbers in which they differ. Notebooks show the same.
    """

    def __init__(self, groups: Iterable[Group]) -> None:
        super().__init__(groups)
        # Optimizers of torch write their other options into the groups.
        names = (name for group in self for name in group if name not in _RESERVED)
        self._option_names = list(dict.fromkeys(names))

    @property
    def parameter_counts(self) -> list[int]:
        """The number of parameters, as numbers, in each group."""
        return [sum(tensor.numel() for tensor in _tensors(group)) for group in self]

    def __repr__(self) -> str:
        """Return the table as lines of plain text."""
        head, rows = self._cells()
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        return "\n".join(_line(row, widths) for row in (head, *rows))

    def _repr_html_(self) -> str:
        """Return the table for notebooks."""
        head, rows = self._cells()
        return html_table(rows, head=dict.fromkeys(head, ""), caption=self._caption())

    def _caption(self) -> str:
        total = f"{sum(self.parameter_counts):,}"
        return f"{total} parameters in {plural(len(self), 'group')}"

    def _cells(self) -> tuple[list[str], list[list[str]]]:
        head = ["group", *self._option_names, "tensors", "parameters", "names"]
        rows = [
            [
                str(number),
                *(_written(group.get(name, "default")) for name in self._option_names),
                f"{len(group['params']):,}",
                f"{count:,}",
                _kinds(_names(group)),
            ]
            for number, (group, count) in enumerate(zip(self, self.parameter_counts, strict=True))
        ]
        return head, rows


def _tensors(group: Group) -> list[Tensor]:
    # An optimizer of torch takes the names out of the pairs.
    return [each[1] if isinstance(each, tuple) else each for each in group["params"]]


def _names(group: Group) -> list[str]:
    named = group.get("param_names")
    if named is not None:
        return list(named)
    return [each[0] for each in group["params"] if isinstance(each, tuple)]


def _written(value: Any) -> str:
    if isinstance(value, Tensor):
        value = value.tolist()
    return f"{value:.6g}" if isinstance(value, float) else shortened(str(value), 20)


def _kinds(names: Sequence[str]) -> str:
    """Return names without repetition: those that differ in their numbers only are one kind."""
    kinds: dict[str, list[list[str]]] = {}
    for name in names:
        kinds.setdefault(_NUMBER.sub("*", name), []).append(name.split("."))
    written = [
        ".".join(part[0] if len(set(part)) == 1 else "*" for part in zip(*same, strict=True))
        for same in kinds.values()
    ]
    more = len(written) - _KINDS_SHOWN
    rest = f" and {more} more" if more > 0 else ""
    return ", ".join(written[:_KINDS_SHOWN]) + rest


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    *numbers, names = (f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
    return "  ".join([*numbers, names.strip()])
