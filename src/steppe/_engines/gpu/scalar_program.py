"""The scalars of a method as a list of operations, for kernels that compute them on the device.

:func:`steppe._engines.bind` gives scalar functions of :mod:`steppe.rules` this module to compute
with, and values that write down what is done to them.
"""

import sys
from typing import Any, NamedTuple

from steppe._engines.base.bind import bind
from steppe._engines.base.method import Method
from steppe._engines.base.param_row import Group


class Program(NamedTuple):
    """Operations on a growing list of values, which begins with the inputs.

    Attributes
    ----------
    operations
        Their names: "add", "subtract", "multiply", "divide", "power", "larger", "smaller", and
        "constant".
    left, right
        The indices of their operands. A constant is its own left operand.
    results
        The indices of the scalars.
    """

    operations: tuple[str, ...]
    left: tuple[float, ...]
    right: tuple[int, ...]
    results: tuple[int, ...]


class _Recorder:
    """The operations that have been recorded so far."""

    def __init__(self) -> None:
        self.inputs = 0
        self.operations: list[tuple[str, float, int]] = []

    def input(self) -> "_Value":
        self.inputs += 1
        return _Value(self, self.inputs - 1)

    def append(self, operation: str, left: float, right: int = 0) -> "_Value":
        self.operations.append((operation, left, right))
        return _Value(self, self.inputs + len(self.operations) - 1)

    def value(self, number: Any) -> "_Value":
        return number if isinstance(number, _Value) else self.append("constant", float(number))

    def binary(self, operation: str, left: Any, right: Any) -> "_Value":
        return self.append(operation, self.value(left).index, self.value(right).index)


class _Value:
    """A number that is not known yet, but has its index in the list of values."""

    def __init__(self, recorder: _Recorder, index: int) -> None:
        self.recorder, self.index = recorder, index

    def __add__(self, other: Any) -> "_Value":
        return self.recorder.binary("add", self, other)

    def __sub__(self, other: Any) -> "_Value":
        return self.recorder.binary("subtract", self, other)

    def __rsub__(self, other: Any) -> "_Value":
        return self.recorder.binary("subtract", other, self)

    def __mul__(self, other: Any) -> "_Value":
        return self.recorder.binary("multiply", self, other)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> "_Value":
        return self.recorder.binary("divide", self, other)

    def __rtruediv__(self, other: Any) -> "_Value":
        return self.recorder.binary("divide", other, self)

    def __pow__(self, other: Any) -> "_Value":
        return self.recorder.binary("power", self, other)


def clip(x: _Value, low: float | None, high: float | None) -> _Value:
    """Return ``x`` within bounds."""
    if low is not None:
        x = x.recorder.binary("larger", x, low)
    if high is not None:
        x = x.recorder.binary("smaller", x, high)
    return x


def record(method: Method, group: Group) -> Program:
    """Write down how a method's scalars come about.

    The inputs are the step count, the number of filled slots, and what :func:`options` returns; of
    ``group`` only the shapes of the options matter.
    """
    recorder = _Recorder()
    t, filled = recorder.input(), recorder.input()
    arguments = {
        name: tuple(recorder.input() for _ in group[name])
        if _is_pair(group[name])
        else recorder.input()
        for name in method.options
    }
    kappa = recorder.input()
    found = bind(method.scalars, sys.modules[__name__])(t, **arguments)
    if method.buffer is not None:
        found = (*found, *bind(method.buffer.aggregate, sys.modules[__name__])(filled, kappa))
    results = tuple(recorder.value(number).index for number in found)
    recorded = recorder.operations
    operations, left, right = zip(*recorded, strict=True) if recorded else ((), (), ())
    return Program(operations, left, right, results)


def options(method: Method, group: Group) -> list[Any]:
    """Return the options that a program reads: numbers, or tensors of one."""
    values: list[Any] = []
    for name in method.options:
        values += group[name] if _is_pair(group[name]) else [group[name]]
    return [*values, group.get("kappa", 0.0)]


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple | list)
