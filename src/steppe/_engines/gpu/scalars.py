"""A row's scalars inside a Triton kernel, from its step count and its group's options."""

import triton
import triton.language as tl

from steppe._engines.gpu import table as gpu_table
from steppe._engines.gpu.elements import pointer_to

_SIGN = tl.constexpr(int(gpu_table.OptionColumn.SIGN))
_OPTIONS_AT = tl.constexpr(int(gpu_table.OptionColumn.OPTIONS))


@triton.jit
def step_count(line, COUNTED: tl.constexpr):
    """Return the row's step count, or if the device counts, what lies at that address."""
    value = tl.load(line + 1)
    if COUNTED:
        t = tl.load(pointer_to(value, "float64"))
    else:
        t = value.to(tl.float64, bitcast=True)
    return t


@triton.jit
def sign_of(group, grad_scale):
    """Return what gradients are multiplied by."""
    sign = tl.load(group + _SIGN)
    if grad_scale is not None:
        sign = sign / tl.load(grad_scale).to(tl.float64)
    return sign


@triton.jit
def run_program(
    t, filled, group,
    OPTIONS: tl.constexpr, OPERATIONS: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr,
):  # fmt: skip
    """Go through a :class:`steppe._engines.gpu.scalar_program.Program` in float64."""
    values = (t, filled)
    for i in tl.static_range(OPTIONS):
        values = values + (tl.load(group + _OPTIONS_AT + i),)
    for i in tl.static_range(len(OPERATIONS)):
        if OPERATIONS[i] == "constant":
            value = tl.full((), LEFT[i], tl.float64)
        elif OPERATIONS[i] == "add":
            value = values[LEFT[i]] + values[RIGHT[i]]
        elif OPERATIONS[i] == "subtract":
            value = values[LEFT[i]] - values[RIGHT[i]]
        elif OPERATIONS[i] == "multiply":
            value = values[LEFT[i]] * values[RIGHT[i]]
        elif OPERATIONS[i] == "divide":
            value = values[LEFT[i]] / values[RIGHT[i]]
        elif OPERATIONS[i] == "larger":
            value = tl.maximum(values[LEFT[i]], values[RIGHT[i]])
        elif OPERATIONS[i] == "smaller":
            value = tl.minimum(values[LEFT[i]], values[RIGHT[i]])
        else:
            tl.static_assert(OPERATIONS[i] == "power")
            # Of a base of 0, that of the smallest number is as good as 0.
            base = tl.log2(tl.maximum(values[LEFT[i]], 2.0**-1022))
            value = tl.exp2(base * values[RIGHT[i]])
        values = values + (value,)
    return values


@triton.jit
def pick(values, INDICES: tl.constexpr, TYPE: tl.constexpr):
    """Return some of a program's values in a number format."""
    chosen = ()
    for i in tl.static_range(len(INDICES)):
        chosen = chosen + (values[INDICES[i]].to(TYPE),)
    return chosen
