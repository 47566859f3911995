"""Number formats of parameters and state, each written once, for every engine.

``state_dtype="int8"`` is stored as ``torch.uint8``, not as ``torch.int8``: its bytes are the codes
``signed8``, and ``square8`` for means of squares (:data:`SQUARES`). ``param_error="int8"`` makes a
parameter in bfloat16 and the state :data:`PARAM_ERROR` one number in ``bfloat24``. Here stands how
one number is rounded and read; each engine has one module that does so for its tensors:

- ``eager/codecs.py``, with whole tensors in torch;
- ``gpu/elements.py``, with blocks in Triton kernels;
- ``cpu/operands.py``, by the lines of source that it writes for Numba.

``checkpoint_scales.py`` rounds once more, to nearest, where a checkpoint's blocks are dealt out to
other processes and two scales of one block come together.

Like the rules, these functions are pure and :func:`steppe._engines.bind` gives them their only
outside name, ``xp``: here a module of operations on 32-bit words, which wrap around as unsigned
integers do. ``xp.bits`` reinterprets a float32 as a word and ``xp.number`` a word as a float32;
``xp.real`` converts a small word to the float32 of the same value; ``xp.single`` makes a constant a
float32.

**Rounding is stochastic**: up or down with the probabilities that make it right on average. A
moving average with β2 = 0.999 changes by less than half a step of an 8-bit or bfloat16 number, and
rounded to nearest it would stand still. The noise is a function of the parameter's index, its step
count and the element's position only, so that a resumed run, another number of threads and another
engine round alike.

**The 8-bit formats** keep a scale for each block of 256 numbers and spend their steps evenly over
the square root (signed numbers: sign and 7 bits) or the fourth root (squares, which are never
negative: 8 bits) of a number over the largest of its block. The roots are piecewise linear, by
halving the exponent of a float32 in its word, which costs a shift; rounding up or down is then
right on average without knowing the neighbours. Near the top a step is 1.6 % of the largest.
Signed numbers go down to 0, squares to 6e-8 of the largest, never to 0: a momentum above a second
moment that was rounded to 0 would throw its parameter far away.
"""

from typing import Any

import torch
from torch import Tensor

xp: Any = None  # replaced by bind

#: Elements that share a scale in the 8-bit formats, and an offset of the noise.
BLOCK = 256

#: Parameters of fewer elements keep their state in full where 8 bits are asked for.
SMALL = 4096

#: Names of the formats that have codes of 8 bits, and scales.
EIGHT_BITS = frozenset({"signed8", "square8"})

#: State that is what a parameter in bfloat16 lacks of its number in bfloat24.
PARAM_ERROR = "param_error"

#: State that is a mean of squares.
SQUARES = frozenset({"exp_avg_sq", "max_exp_avg_sq", "square_avg"})

_NAMES = {
    torch.float64: "float64",
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}


def wide_dtype(tensor: Tensor) -> torch.dtype:
    """Return the number format that arithmetic on a tensor is done in: at least float32."""
    return torch.promote_types(tensor.dtype, torch.float32)


def accumulator(device: torch.device) -> torch.dtype:
    """Return what sums and scalars are computed in: float64, where the device has it.

    In float32, 1 − β2ᵗ loses three digits at t = 1.
    """
    return torch.float32 if device.type == "mps" else torch.float64


def scale_name(name: str) -> str:
    """Name of the state that holds the scales of the 8-bit state ``name``."""
    return f"{name}_scale"


def format_of(name: str, value: Tensor) -> str:
    """Name the number format of a parameter, or of the state ``name``."""
    if value.dtype == torch.uint8:
        return "square8" if name in SQUARES else "signed8"
    return _NAMES.get(value.dtype, str(value.dtype))


def gradient_format(param_format: str) -> str:
    """Name the number format of the gradients of parameters in a format."""
    return "bfloat16" if param_format == "bfloat24" else param_format


def takes_error(param: Tensor) -> bool:
    """Whether ``param_error`` adds anything to a parameter."""
    return param.dtype == torch.bfloat16


def rounds_stochastically(format: str) -> bool:
    """Whether numbers in a format are rounded stochastically."""
    return format in EIGHT_BITS or format in ("bfloat16", "bfloat24")


def block_count(size: int) -> int:
    """Return how many scales ``size`` elements have."""
    return -(-size // BLOCK)


# Noise


def hash_word(x: Any) -> Any:
    """Hash a word by C. Wellons' lowbias32 (https://github.com/skeeto/hash-prospector)."""
    x = xp.bitwise_xor(x, xp.right_shift(x, 16))
    x = xp.multiply(x, 0x7FEB352D)
    x = xp.bitwise_xor(x, xp.right_shift(x, 15))
    x = xp.multiply(x, 0x846CA68B)
    return xp.bitwise_xor(x, xp.right_shift(x, 16))


def noise_key(number: Any, step: Any) -> Any:
    """Return the seed of all noise of one parameter, the ``number``-th, in one step."""
    return hash_word(xp.bitwise_xor(hash_word(xp.add(number, 0x5BD1E995)), step))


def noise_offset(key: Any, stream: Any, block: Any) -> Any:
    """Return a block's random offset; the parameter and each of its state tensors is a stream."""
    return hash_word(xp.bitwise_xor(hash_word(xp.add(key, stream)), block))


def noise(offset: Any, index: Any) -> Any:
    """Return an element's noise, a word that is uniform because ``offset`` is.

    Within a block it is the golden ratio's sequence from a random start, fresh for each block,
    stream and step (a Cranley–Patterson rotation), at the cost of one addition.
    """
    return xp.add(offset, xp.multiply(index, 0x9E3779B9))


def next_noise(noise: Any) -> Any:
    """Return the noise of the element that follows in the block."""
    return xp.add(noise, 0x9E3779B9)


# bfloat16: the upper half of a float32


def to_bfloat16(x: Any, noise: Any) -> Any:
    """Round to the word of a bfloat16; infinities stay, NaN becomes the quiet one."""
    rounded = xp.right_shift(xp.add(xp.bits(x), xp.right_shift(noise, 16)), 16)
    return xp.where(x == x, rounded, 0x7FC0)


def from_bfloat16(word: Any) -> Any:
    """Return the number of a bfloat16's word."""
    return xp.number(xp.left_shift(word, 16))


# bfloat24: the upper three bytes of a float32. The parameter is the nearest bfloat16; the error,
# from −128 to 127, is what is to be added to 256 times its word to give the word of 24 bits. Words
# order sizes as numbers do, so the sum is right also where the bfloat16 is a power of two.


def to_bfloat24(x: Any, noise: Any) -> Any:
    """Round to the word of 24 bits, whose last byte is the error; NaN becomes the quiet one."""
    rounded = xp.right_shift(xp.add(xp.bits(x), xp.right_shift(noise, 24)), 8)
    return xp.where(x == x, rounded, 0x7FC000)


def nearest_bfloat16(word: Any) -> Any:
    """Return the word of the bfloat16 that is nearest to that of a bfloat24, the upper of two."""
    return xp.right_shift(xp.add(word, 0x80), 8)


def from_bfloat24(upper: Any, error: Any) -> Any:
    """Return the number of a bfloat16's word and an error's byte.

    Of 0 the error does not count: a weight that was pruned stays so, whatever its error has been.
    """
    nearest = xp.left_shift(upper, 16)
    signed = xp.subtract(xp.bitwise_xor(error, 0x80), 0x80)
    exact = xp.add(nearest, xp.left_shift(signed, 8))
    return xp.number(xp.where(xp.number(nearest) == xp.single(0.0), nearest, exact))


# 8 bits. A root's value y is brought to [128, 256) or [256, 512), where the word of a float32 is a
# fixed-point number; noise of the size of its fraction, and cutting the fraction off, rounds it.
# Blocks whose largest number is below 1e-37 (0x02081CEA) have the scale of that, whose inverse is
# finite.
# Signed: y = 128·√(|x|/s + 2⁻¹²), from 2 (zero) to 127; squares: y = 256·⁴√(x/s), from 4 to 255.


def to_signed8(x: Any, inverse: Any, noise: Any) -> Any:
    """Round to sign and magnitude; ``inverse`` is that of the block's scale."""
    size = xp.number(size_word(x)) * inverse + xp.single(2.0**-12)
    y = xp.number(xp.add(xp.right_shift(xp.bits(size), 1), 0x23400000)) + xp.single(128.0)
    code = xp.right_shift(xp.add(xp.bits(y), xp.right_shift(noise, 16)), 16)
    sign = xp.left_shift(xp.right_shift(xp.bits(x), 31), 7)
    return xp.bitwise_or(xp.bitwise_and(code, 0x7F), sign)


def from_signed8(code: Any, scale: Any) -> Any:
    """Return the number of a sign and magnitude."""
    y = xp.bits(xp.real(xp.bitwise_and(code, 0x7F)))
    size = xp.number(xp.subtract(xp.left_shift(y, 1), 0x46800000)) - xp.single(2.0**-12)
    sign = xp.left_shift(xp.bitwise_and(code, 0x80), 24)
    return xp.number(xp.bitwise_or(xp.bits(size * scale), sign))


def to_square8(x: Any, inverse: Any, noise: Any) -> Any:
    """Round to 8 bits of the fourth root; ``inverse`` is that of the block's scale."""
    size = xp.maximum(x * inverse, xp.single(2.0**-24))
    y = xp.number(xp.add(xp.right_shift(xp.bits(size), 2), 0x33A00000)) + xp.single(256.0)
    code = xp.right_shift(xp.add(xp.bits(y), xp.right_shift(noise, 17)), 15)
    return xp.bitwise_and(code, 0xFF)


def from_square8(code: Any, scale: Any) -> Any:
    """Return the number of a fourth root's 8 bits."""
    y = xp.bits(xp.real(code))
    return xp.number(xp.subtract(xp.left_shift(y, 2), 0xCE800000)) * scale


def size_word(x: Any) -> Any:
    """Return the word of |x|; words order sizes as numbers do, with infinity and NaN on top."""
    return xp.bitwise_and(xp.bits(x), 0x7FFFFFFF)


def scale_signed8(largest: Any) -> Any:
    """Return a block's scale from its largest word: that size is y = 127, less a part in 2²⁰."""
    return xp.number(xp.larger(largest, 0x02081CEA)) * xp.single(1.016_126)


def scale_square8(largest: Any) -> Any:
    """Return a block's scale from its largest word: that number is y = 255, less a part in 2²⁰."""
    return xp.number(xp.larger(largest, 0x02081CEA)) * xp.single(1.015_874)
