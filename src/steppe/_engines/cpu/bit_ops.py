"""The vocabulary of :mod:`steppe._engines.base.number_formats` in Numba: words are uint32.

Numba's own integer arithmetic widens to 64 bits, of which a vector holds half as many.
"""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import float32, types, uint32
from numba.extending import intrinsic

from steppe._engines.base import number_formats
from steppe._engines.base.bind import bind
from steppe._engines.cpu.intrinsics import inlined

_WORD = ir.IntType(32)
Emit = Callable[[ir.IRBuilder, Any], Any]


def _operation(arguments: Any, result: Any, emit: Emit) -> Callable[..., Any]:
    """Make a function of one LLVM instruction."""
    signature = result(*arguments)

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> Any:
        return emit(builder, values)

    if len(arguments) == 1:

        def unary(typing_context: Any, a: Any) -> Any:
            return signature, generate

        return intrinsic(unary)

    def binary(typing_context: Any, a: Any, b: Any) -> Any:
        return signature, generate

    return intrinsic(binary)


def _words(name: str) -> Callable[..., Any]:
    return _operation((uint32, uint32), uint32, lambda builder, x: getattr(builder, name)(*x))


add = _words("add")
subtract = _words("sub")
multiply = _words("mul")
left_shift = _words("shl")
right_shift = _words("lshr")
bitwise_and = _words("and_")
bitwise_or = _words("or_")
bitwise_xor = _words("xor")
bits = _operation((float32,), uint32, lambda builder, x: builder.bitcast(x[0], _WORD))
number = _operation((uint32,), float32, lambda builder, x: builder.bitcast(x[0], ir.FloatType()))
real = _operation((uint32,), float32, lambda builder, x: builder.sitofp(x[0], ir.FloatType()))
larger = _operation(
    (uint32, uint32),
    uint32,
    lambda builder, x: builder.select(builder.icmp_unsigned(">", x[0], x[1]), x[0], x[1]),
)
word8 = _operation((types.uint8,), uint32, lambda builder, x: builder.zext(x[0], _WORD))
word16 = _operation((types.uint16,), uint32, lambda builder, x: builder.zext(x[0], _WORD))
byte = _operation((uint32,), types.uint8, lambda builder, x: builder.trunc(x[0], ir.IntType(8)))
half = _operation((uint32,), types.uint16, lambda builder, x: builder.trunc(x[0], ir.IntType(16)))
single = np.float32


@inlined
def where(condition: Any, a: Any, b: Any) -> Any:
    """Choose a word."""
    return uint32(a) if condition else uint32(b)


@inlined
def maximum(a: Any, b: Any) -> Any:
    """Return the larger number; NaN may be lost, and is told by its block's scale."""
    return a if a > b else b


def compiled_format(name: str) -> Callable[..., Any]:
    """Compile a function of number formats, to be inlined into a kernel's loop."""
    return bind(getattr(number_formats, name), sys.modules[__name__], inlined)
