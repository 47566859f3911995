"""The vocabularies of :mod:`steppe.rules` and :mod:`steppe._engines.base.number_formats` in Triton.

Words are blocks of uint32. In Triton's interpreter only names that are reached through
``triton.language`` compute, hence functions for what the language has already.
"""

import triton
import triton.language as tl


@triton.jit
def sqrt(x):
    """Round correctly, as torch does: in float32, Triton's own root is an approximation."""
    if x.dtype == tl.float64:
        root = tl.sqrt(x)
    else:
        root = tl.sqrt_rn(x)
    return root


@triton.jit
def abs(x):
    """Return |x|."""
    return tl.abs(x)


@triton.jit
def maximum(a, b):
    """Return the larger number; NaN comes through, as it does in torch."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def where(condition, a, b):
    """Choose by a mask."""
    return tl.where(condition, a, b)


@triton.jit
def argmin(x, axis: tl.constexpr):
    """Return the place of the smallest number, the first of equals."""
    return tl.argmin(x, axis)


@triton.jit
def bits(x):
    """Return the words of numbers, as float32."""
    return x.to(tl.float32).to(tl.uint32, bitcast=True)


@triton.jit
def number(word):
    """Return the float32 numbers of words."""
    return word.to(tl.float32, bitcast=True)


@triton.jit
def real(word):
    """Convert small words to float32."""
    return word.to(tl.float32)


@triton.jit
def single(value):
    """Return a constant in float32."""
    return tl.cast(value, tl.float32)


@triton.jit
def add(a, b):
    """Add words."""
    return tl.cast(a, tl.uint32) + tl.cast(b, tl.uint32)


@triton.jit
def subtract(a, b):
    """Subtract words."""
    return tl.cast(a, tl.uint32) - tl.cast(b, tl.uint32)


@triton.jit
def multiply(a, b):
    """Multiply words."""
    return tl.cast(a, tl.uint32) * tl.cast(b, tl.uint32)


@triton.jit
def left_shift(word, count):
    """Shift words left."""
    return word << tl.cast(count, tl.uint32)


@triton.jit
def right_shift(word, count):
    """Shift words right."""
    return word >> tl.cast(count, tl.uint32)


@triton.jit
def bitwise_and(a, b):
    """Return the bits that both have."""
    return tl.cast(a, tl.uint32) & tl.cast(b, tl.uint32)


@triton.jit
def bitwise_or(a, b):
    """Return the bits that either has."""
    return tl.cast(a, tl.uint32) | tl.cast(b, tl.uint32)


@triton.jit
def bitwise_xor(a, b):
    """Return the bits that one of them has."""
    return tl.cast(a, tl.uint32) ^ tl.cast(b, tl.uint32)


@triton.jit
def larger(a, b):
    """Return the larger word."""
    return tl.maximum(a, tl.cast(b, tl.uint32))
