"""How Triton kernels read, round and write elements of tensors, in every number format.

A block is a row of 256 elements: that many share a scale in the 8-bit formats, and an offset of the
noise. The formats are those of :mod:`steppe._engines.base.number_formats`.
"""

import triton
import triton.language as tl

from steppe._engines.base import number_formats
from steppe._engines.base.bind import bind
from steppe._engines.gpu import bit_ops
from steppe._engines.gpu import table as gpu_table


def jit(function):
    """Compile a bound function; Triton's interpreter looks for the language among its names."""
    function.__globals__.update(tl=tl, Any=tl.constexpr)
    return triton.jit(function)


def bound(function):
    """Return a function of rules or of number formats in Triton."""
    return bind(function, bit_ops, jit)


_noise_offset = bound(number_formats.noise_offset)
_noise = bound(number_formats.noise)
_to_bfloat16 = bound(number_formats.to_bfloat16)
_size_word = bound(number_formats.size_word)
_to_bfloat24 = bound(number_formats.to_bfloat24)
_from_bfloat24 = bound(number_formats.from_bfloat24)
_nearest_bfloat16 = bound(number_formats.nearest_bfloat16)
_to_signed8, _from_signed8 = bound(number_formats.to_signed8), bound(number_formats.from_signed8)
_to_square8, _from_square8 = bound(number_formats.to_square8), bound(number_formats.from_square8)
_scale_signed8, _scale_square8 = (
    bound(number_formats.scale_signed8),
    bound(number_formats.scale_square8),
)

BLOCK = tl.constexpr(number_formats.BLOCK)
#: Blocks that are at hand at a time.
ROWS = tl.constexpr(4)

_STATE_AT = tl.constexpr(int(gpu_table.RowColumn.STATE))


# What lies where


@triton.jit
def pointer_to(address, FORMAT: tl.constexpr):
    """Make an address a pointer to numbers of a format."""
    if FORMAT == "float32":
        pointer = address.to(tl.pointer_type(tl.float32))
    elif FORMAT == "float64":
        pointer = address.to(tl.pointer_type(tl.float64))
    elif (FORMAT == "bfloat16") | (FORMAT == "bfloat24"):
        pointer = address.to(tl.pointer_type(tl.bfloat16))
    elif FORMAT == "float16":
        pointer = address.to(tl.pointer_type(tl.float16))
    else:
        pointer = address.to(tl.pointer_type(tl.uint8))
    return pointer


@triton.jit
def start_of(address, start, FORMAT: tl.constexpr, ALIGNED: tl.constexpr):
    """Return a pointer to a tensor's element ``start``; addresses from a table lack alignment."""
    pointer = pointer_to(address, FORMAT) + start
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def scales_at(address, block):
    """Return a pointer to the scale of a block."""
    return pointer_to(address, "float32") + block


@triton.jit
def state_at(line, start, first_block, STATE: tl.constexpr, ALIGNED: tl.constexpr):
    """Return pointers to the state, and to its scales."""
    parts = ()
    scales = ()
    for i in tl.static_range(len(STATE)):
        at = line + _STATE_AT + 2 * i
        parts = parts + (start_of(tl.load(at), start, tl.constexpr(STATE[i]), ALIGNED),)
        scales = scales + (scales_at(tl.load(at + 1), first_block),)
    return parts, scales


@triton.jit
def elements_of(first):
    """Return blocks, and their elements."""
    block = first + tl.arange(0, ROWS)
    return block, block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]


@triton.jit
def read(pointer, has, MASKED: tl.constexpr):
    if MASKED:
        value = tl.load(pointer, has, other=0)
    else:
        value = tl.load(pointer)
    return value


@triton.jit
def write(pointer, value, has, MASKED: tl.constexpr):
    if MASKED:
        tl.store(pointer, value, has)
    else:
        tl.store(pointer, value)


# Number formats


@triton.jit
def load_elements(
    part, scales, block, element, has, left,
    FORMAT: tl.constexpr, WIDE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Return numbers to compute with; in bfloat24 ``scales`` are the errors of elements."""
    value = read(part + element, has, MASKED)
    if FORMAT == "signed8":
        value = _from_signed8(
            value.to(tl.uint32), read(scales + block, block * BLOCK < left, MASKED)[:, None]
        )
    elif FORMAT == "bfloat24":
        error = read(scales + element, has, MASKED).to(tl.uint32)
        value = _from_bfloat24(value.to(tl.uint16, bitcast=True).to(tl.uint32), error)
    elif FORMAT == "square8":
        value = _from_square8(
            value.to(tl.uint32), read(scales + block, block * BLOCK < left, MASKED)[:, None]
        )
    return value.to(WIDE)


@triton.jit
def store_elements(
    part, scales, x, whole_block, block, element, has, left, key,
    STREAM: tl.constexpr, FORMAT: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Round and write numbers; ``STREAM`` tells their noise from others'."""
    if FORMAT == "bfloat16":
        noise = _noise_of(whole_block, block, element, key, STREAM)
        x = _to_bfloat16(x.to(tl.float32), noise).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    elif FORMAT == "bfloat24":
        noise = _noise_of(whole_block, block, element, key, STREAM)
        word = _to_bfloat24(x.to(tl.float32), noise)
        write(scales + element, word.to(tl.uint8), has, MASKED)
        x = _nearest_bfloat16(word).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    elif (FORMAT == "signed8") | (FORMAT == "square8"):
        x = x.to(tl.float32)
        if MASKED:
            x = tl.where(has, x, 0.0)
        largest = tl.max(_size_word(x), axis=1)
        noise = _noise_of(whole_block, block, element, key, STREAM)
        if FORMAT == "signed8":
            scale = _scale_signed8(largest)
            x = _to_signed8(x, tl.div_rn(1.0, scale)[:, None], noise).to(tl.uint8)
        else:
            scale = _scale_square8(largest)
            x = _to_square8(x, tl.div_rn(1.0, scale)[:, None], noise).to(tl.uint8)
        write(scales + block, scale, block * BLOCK < left, MASKED)
    write(part + element, x.to(part.dtype.element_ty), has, MASKED)


@triton.jit
def _noise_of(whole_block, block, element, key, STREAM: tl.constexpr):
    offset = _noise_offset(key, STREAM, whole_block + block)
    return _noise(offset[:, None], whole_block * BLOCK + element)
