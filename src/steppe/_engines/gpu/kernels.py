"""The Triton kernels: one reduction over all tensors of a batch, and one update of all of them.

A program takes a chunk of one tensor, in blocks of rows of 256 elements: that many share a scale in
the 8-bit formats, and an offset of the noise. Whole chunks go without a mask, so that loads and
stores are 128 bits wide. Where something has to wait for all programs of a tensor, the last of them
does it, and in an order that does not depend on which it is.
"""

import triton
import triton.language as tl

from steppe import rules
from steppe._engines.base import number_formats
from steppe._engines.base.bind import bind
from steppe._engines.base.method import RESUM_EVERY
from steppe._engines.gpu import bit_ops
from steppe._engines.gpu import table as gpu_table


def jit(function):
    """Compile a bound function; Triton's interpreter looks for the language among its names."""
    function.__globals__.update(tl=tl, Any=tl.constexpr)
    return triton.jit(function)


def bound(function):
    """Return a function of rules or of number formats in Triton."""
    return bind(function, bit_ops, jit)


_swap = bound(rules.swap)
_noise_key = bound(number_formats.noise_key)
_noise_offset = bound(number_formats.noise_offset)
_noise = bound(number_formats.noise)
_to_bfloat16 = bound(number_formats.to_bfloat16)
_size_word = bound(number_formats.size_word)
_to_signed8, _from_signed8 = bound(number_formats.to_signed8), bound(number_formats.from_signed8)
_to_square8, _from_square8 = bound(number_formats.to_square8), bound(number_formats.from_square8)
_scale_signed8, _scale_square8 = (
    bound(number_formats.scale_signed8),
    bound(number_formats.scale_square8),
)

CHUNK = tl.constexpr(gpu_table.CHUNK // number_formats.BLOCK)
SPAN = tl.constexpr(gpu_table.SPAN // number_formats.BLOCK)
BLOCK = tl.constexpr(number_formats.BLOCK)
ROWS = tl.constexpr(4)
AT_ONCE = tl.constexpr(1024)
RESUM = tl.constexpr(RESUM_EVERY)

_Column = gpu_table.RowColumn
(
    NUMBER, NUMEL, WHOLE_NUMEL, GROUP, FIRST_SPAN, PROGRAMS, CAPACITY,
    KEYS, BIRTHS, REPLACEMENTS, SUM, MEAN, PARAM_AT, STATE_AT,
) = map(tl.constexpr, map(int, _Column))  # fmt: skip
PIECE = tl.constexpr(len(gpu_table.PieceColumn))
ROW, START, LOWER, UPPER, CELL, FIRST_BLOCK = map(tl.constexpr, map(int, gpu_table.PieceColumn))
SIGN, OWN, DECAY, OPTIONS_AT = map(tl.constexpr, map(int, gpu_table.OptionColumn))


#: What the arithmetic is done in, by whether parameters are float64.
WIDE = (tl.float32, tl.float64)

# What lies where


@triton.jit
def _typed(address, FORMAT: tl.constexpr):
    """Make an address a pointer to numbers of a format."""
    if FORMAT == "float32":
        pointer = address.to(tl.pointer_type(tl.float32))
    elif FORMAT == "float64":
        pointer = address.to(tl.pointer_type(tl.float64))
    elif FORMAT == "bfloat16":
        pointer = address.to(tl.pointer_type(tl.bfloat16))
    elif FORMAT == "float16":
        pointer = address.to(tl.pointer_type(tl.float16))
    else:
        pointer = address.to(tl.pointer_type(tl.uint8))
    return pointer


@triton.jit
def _part(address, start, FORMAT: tl.constexpr, ALIGNED: tl.constexpr):
    """Return a pointer to a tensor's element ``start``; addresses from a table lack alignment."""
    pointer = _typed(address, FORMAT) + start
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def _scales(address, block):
    """Return a pointer to the scale of a block."""
    return _typed(address, "float32") + block


@triton.jit
def _state(line, start, first_block, STATE: tl.constexpr, ALIGNED: tl.constexpr):
    """Return pointers to the state, and to its scales."""
    parts = ()
    scales = ()
    for i in tl.static_range(len(STATE)):
        at = line + STATE_AT + 2 * i
        parts = parts + (_part(tl.load(at), start, tl.constexpr(STATE[i]), ALIGNED),)
        scales = scales + (_scales(tl.load(at + 1), first_block),)
    return parts, scales


@triton.jit
def _places(first):
    """Return blocks, and their elements."""
    block = first + tl.arange(0, ROWS)
    return block, block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]


@triton.jit
def _read(pointer, has, MASKED: tl.constexpr):
    if MASKED:
        value = tl.load(pointer, has, other=0)
    else:
        value = tl.load(pointer)
    return value


@triton.jit
def _write(pointer, value, has, MASKED: tl.constexpr):
    if MASKED:
        tl.store(pointer, value, has)
    else:
        tl.store(pointer, value)


# Number formats


@triton.jit
def _load(
    part, scales, block, place, has, left,
    FORMAT: tl.constexpr, WIDE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Return numbers to compute with."""
    value = _read(part + place, has, MASKED)
    if FORMAT == "signed8":
        value = _from_signed8(
            value.to(tl.uint32), _read(scales + block, block * BLOCK < left, MASKED)[:, None]
        )
    elif FORMAT == "square8":
        value = _from_square8(
            value.to(tl.uint32), _read(scales + block, block * BLOCK < left, MASKED)[:, None]
        )
    return value.to(WIDE)


@triton.jit
def _store(
    part, scales, x, cell, block, place, has, left, key,
    STREAM: tl.constexpr, FORMAT: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Round and write numbers; ``STREAM`` tells their noise from others'."""
    if FORMAT == "bfloat16":
        noise = _noise_of(cell, block, place, key, STREAM)
        x = _to_bfloat16(x.to(tl.float32), noise).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    elif (FORMAT == "signed8") | (FORMAT == "square8"):
        x = x.to(tl.float32)
        if MASKED:
            x = tl.where(has, x, 0.0)
        largest = tl.max(_size_word(x), axis=1)
        noise = _noise_of(cell, block, place, key, STREAM)
        if FORMAT == "signed8":
            scale = _scale_signed8(largest)
            x = _to_signed8(x, tl.div_rn(1.0, scale)[:, None], noise).to(tl.uint8)
        else:
            scale = _scale_square8(largest)
            x = _to_square8(x, tl.div_rn(1.0, scale)[:, None], noise).to(tl.uint8)
        _write(scales + block, scale, block * BLOCK < left, MASKED)
    _write(part + place, x.to(part.dtype.element_ty), has, MASKED)


@triton.jit
def _noise_of(cell, block, place, key, STREAM: tl.constexpr):
    offset = _noise_offset(key, STREAM, cell + block)
    return _noise(offset[:, None], cell * BLOCK + place)


# Scalars


@triton.jit
def _count(line, COUNTED: tl.constexpr):
    """Return the row's step count, or if the device counts, what lies at that address."""
    value = tl.load(line + 1)
    if COUNTED:
        t = tl.load(_typed(value, "float32")).to(tl.float64)
    else:
        t = value.to(tl.float64, bitcast=True)
    return t


@triton.jit
def _sign(group, grad_scale):
    """Return what gradients are multiplied by."""
    sign = tl.load(group + SIGN)
    if grad_scale is not None:
        sign = sign / tl.load(grad_scale).to(tl.float64)
    return sign


@triton.jit
def _values(
    t, filled, group,
    OPTIONS: tl.constexpr, OPERATIONS: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr,
):  # fmt: skip
    """Go through a :class:`steppe._engines.gpu.scalar_program.Program` in float64."""
    values = (t, filled)
    for i in tl.static_range(OPTIONS):
        values = values + (tl.load(group + OPTIONS_AT + i),)
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
def _chosen(values, PLACES: tl.constexpr, TYPE: tl.constexpr):
    chosen = ()
    for i in tl.static_range(len(PLACES)):
        chosen = chosen + (values[PLACES[i]].to(TYPE),)
    return chosen


# Waiting for all programs


@triton.jit
def _is_last(counter, programs):
    """Whether the other programs have come here before; what they wrote can then be read."""
    tl.debug_barrier()
    is_last = tl.atomic_add(counter, 1, sem="acq_rel") == programs - 1
    if is_last:
        tl.store(counter, 0)
    tl.debug_barrier()
    return is_last


@triton.jit
def _sum(values, count):
    """Add up numbers that other programs wrote, in a fixed order."""
    index = tl.arange(0, AT_ONCE)
    total = tl.zeros((AT_ONCE,), tl.float64)
    for first in range(0, count, AT_ONCE):
        # Past the first-level cache, which does not see other programs' writes.
        total += tl.load(values + first + index, first + index < count, 0.0, cache_modifier=".cg")
    return tl.sum(total, 0)


# The reduction


@triton.jit(do_not_specialize=["width", "setting_width", "rows"])
def reduce(
    table, lines, settings, spans, partials, sums, arrivals, grad_scale,
    width, setting_width, rows,
    PARAM: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Sum the squares of each gradient, and of all.

    ``sums`` receives one sum for each row, then that of all rows.
    """
    row = tl.load(spans + 2 * tl.program_id(0)).to(tl.int64)
    start = tl.load(spans + 2 * tl.program_id(0) + 1).to(tl.int64) * (SPAN * BLOCK)
    line = table + row * width
    sign = _sign(settings + tl.load(line + GROUP) * setting_width, grad_scale)
    numel = tl.load(line + NUMEL)
    grad = _part(tl.load(lines + 2 * row), start, PARAM, ALIGNED)

    total = tl.zeros((ROWS, BLOCK), tl.float64)
    if start + SPAN * BLOCK <= numel:
        for first in range(0, SPAN, ROWS):
            total += _squares(grad, sign, first, SPAN * BLOCK, False)
    else:
        left = (numel - start).to(tl.int32)
        for first in range(0, tl.cdiv(left, BLOCK), ROWS):
            total += _squares(grad, sign, first, left, True)
    tl.store(partials + tl.program_id(0), tl.sum(tl.sum(total, 1), 0))

    programs = tl.maximum(tl.cdiv(numel, SPAN * BLOCK), 1).to(tl.int32)
    if _is_last(arrivals + row, programs):
        tl.store(sums + row, _sum(partials + tl.load(line + FIRST_SPAN), programs))
        if _is_last(arrivals + rows, rows):
            tl.store(sums + rows, _sum(sums, rows))


@triton.jit
def _squares(grad, sign, first, left, MASKED: tl.constexpr):
    _, place = _places(first)
    g = _read(grad + place, place < left, MASKED).to(tl.float64) * sign
    return g * g


# The update


@triton.jit(do_not_specialize=["width", "setting_width"])
def update(
    table, lines, settings, chunks, sums, priority, arrivals, grad_scale, found_inf,
    width, setting_width,
    RULE: tl.constexpr, REMEMBER: tl.constexpr, MEAN_SQUARE: tl.constexpr, IN_MEAN: tl.constexpr,
    COUNTED: tl.constexpr,
    OPTIONS: tl.constexpr, OPERATIONS: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr,
    RESULTS: tl.constexpr,
    PARAM: tl.constexpr, STATE: tl.constexpr, SLOT: tl.constexpr, SLOTS: tl.constexpr,
    KEEPS_SUM: tl.constexpr, WIDE: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Advance all tensors by one step, unless a gradient was infinite."""
    if found_inf is not None:
        if tl.load(found_inf) != 0.0:
            return
    piece = chunks + PIECE * tl.program_id(0)
    row = tl.load(piece + ROW)
    start = tl.load(piece + START)
    lower = tl.load(piece + LOWER).to(tl.int32)
    upper = tl.load(piece + UPPER).to(tl.int32)
    cell = tl.load(piece + CELL)
    first_block = tl.load(piece + FIRST_BLOCK)
    line = table + row * width
    group = settings + tl.load(line + GROUP) * setting_width
    sign = _sign(group, grad_scale).to(WIDE)
    t = _count(lines + 2 * row, COUNTED)
    key = _noise_key(tl.load(line + NUMBER), t.to(tl.int64))

    programs = tl.load(line + PROGRAMS).to(tl.int32)
    capacity = tl.load(line + CAPACITY).to(tl.int32)
    chosen = -1
    due = False
    filled = tl.full((), 0.0, tl.float64)
    if SLOTS > 0:
        if priority is None:
            size = tl.sqrt(tl.load(sums + row))
        elif sums is None:
            size = tl.load(priority)
        else:
            is_own = tl.load(group + OWN) != 0.0
            size = tl.where(is_own, tl.sqrt(tl.load(sums + row)), tl.load(priority))
        decay = tl.load(group + DECAY)
        chosen, due, filled = _decide(
            line, capacity, size, t, decay, arrivals + row, programs, REMEMBER, SLOTS
        )

    values = _values(t, filled, group, OPTIONS, OPERATIONS, LEFT, RIGHT)
    scalars = _chosen(values, RESULTS, WIDE)
    if MEAN_SQUARE is not None:
        mean_at = _typed(tl.load(line + MEAN), "float64")
        square = tl.load(sums + row) / tl.maximum(tl.load(line + WHOLE_NUMEL), 1).to(tl.float64)
        in_mean = _chosen(values, IN_MEAN, tl.float64)
        mean, mean_square = MEAN_SQUARE(tl.load(mean_at), square, *in_mean)
        if _is_last(arrivals + row, programs):
            tl.store(mean_at, mean)
        scalars = scalars + (tl.sqrt(mean_square).to(WIDE),)

    param = _part(tl.load(line + PARAM_AT), start, PARAM, ALIGNED)
    grad = _part(tl.load(lines + 2 * row), start, PARAM, ALIGNED)
    total = _part(tl.load(line + SUM), start, SLOT, ALIGNED)
    parts, scales = _state(line, start, first_block, STATE, ALIGNED)
    slots = line + STATE_AT + 2 * len(STATE)
    if (lower == 0) & (upper == CHUNK * BLOCK):
        for first in range(0, CHUNK, ROWS):
            _advance(
                param, grad, sign, parts, scales, scalars, total, slots, capacity, chosen, due,
                key, start, cell, first_block, first, 0, CHUNK * BLOCK,
                RULE, PARAM, STATE, SLOT, SLOTS, REMEMBER is not None, KEEPS_SUM, WIDE, ALIGNED,
                False,
            )  # fmt: skip
    else:
        for first in range(0, tl.cdiv(upper, BLOCK), ROWS):
            _advance(
                param, grad, sign, parts, scales, scalars, total, slots, capacity, chosen, due,
                key, start, cell, first_block, first, lower, upper,
                RULE, PARAM, STATE, SLOT, SLOTS, REMEMBER is not None, KEEPS_SUM, WIDE, ALIGNED,
                True,
            )  # fmt: skip


@triton.jit
def _advance(
    param, grad, sign, parts, scales, scalars, total, slots, capacity, chosen, due,
    key, start, cell, first_block, first, lower, upper,
    RULE: tl.constexpr, PARAM: tl.constexpr, STATE: tl.constexpr, SLOT: tl.constexpr,
    SLOTS: tl.constexpr, HAS_BUFFER: tl.constexpr, KEEPS_SUM: tl.constexpr, WIDE: tl.constexpr,
    ALIGNED: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Advance one block of one tensor."""
    block, place = _places(first)
    has = (place >= lower) & (place < upper)
    p = _read(param + place, has, MASKED).to(WIDE)
    g = _read(grad + place, has, MASKED).to(WIDE) * sign
    operands = (p, g)
    for i in tl.static_range(len(STATE)):
        value = _load(
            parts[i], scales[i], block, place, has, upper, tl.constexpr(STATE[i]), WIDE, MASKED
        )  # fmt: skip
        operands = operands + (value,)
    if HAS_BUFFER:
        if SLOTS == 0:
            remembered = tl.zeros_like(p)
        elif KEEPS_SUM:
            remembered = _read(total + place, has, MASKED)
        else:
            remembered = _slot_sum(
                slots, capacity, -1, p, start, first_block, block, place, has, upper,
                SLOT, WIDE, ALIGNED, MASKED,
            )  # fmt: skip
        operands = operands + (remembered,)
    results = RULE(*operands, *scalars)
    if SLOTS > 0:
        if chosen >= 0:
            item = results[len(STATE) + 1]
            at = slots + 2 * chosen
            slot = _part(tl.load(at), start, SLOT, ALIGNED)
            if KEEPS_SUM:
                if due:
                    total_now = _slot_sum(
                        slots, capacity, chosen, item, start, first_block, block, place, has, upper,
                        SLOT, WIDE, ALIGNED, MASKED,
                    )  # fmt: skip
                else:
                    total_now = _swap(remembered, _read(slot + place, has, MASKED), item)
                _write(total + place, total_now, has, MASKED)
            _store(
                slot, _scales(tl.load(at + 1), first_block), item, cell, block, place, has,
                upper, key, len(STATE) + 1, SLOT, MASKED,
            )  # fmt: skip
    _store(param, None, results[0], cell, block, place, has, upper, key, 0, PARAM, MASKED)
    for i in tl.static_range(len(STATE)):
        _store(
            parts[i], scales[i], results[i + 1], cell, block, place, has, upper, key,
            i + 1, tl.constexpr(STATE[i]), MASKED,
        )  # fmt: skip


# The buffer


@triton.jit
def _decide(
    line, capacity, priority, t, decay, counter, programs,
    REMEMBER: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """Choose the slot for this step's item, −1 for none, as every program of the tensor does.

    Returns it, whether the slots are then due to be summed afresh, and how many are filled.
    """
    index = tl.arange(0, SLOTS)
    there = index < capacity
    keys_at = _typed(tl.load(line + KEYS), "float64") + index
    births_at = _typed(tl.load(line + BIRTHS), "float64") + index
    replacements_at = tl.load(line + REPLACEMENTS).to(tl.pointer_type(tl.int64))
    keys = tl.load(keys_at, there, float("inf"))
    births = tl.load(births_at, there, float("inf"))
    # A block, since in Triton's interpreter comparisons of scalars do not broadcast.
    priority = tl.zeros_like(keys) + priority
    store, new_keys, new_births = REMEMBER(keys, births, index, priority, t, decay)
    chosen = tl.max(tl.where(store & there, index, -1), 0)
    replacements = tl.load(replacements_at) + (chosen >= 0).to(tl.int64)
    filled = tl.sum(tl.where(there & (keys > float("-inf")), 1.0, 0.0).to(tl.float64), 0)
    if _is_last(counter, programs):
        tl.store(keys_at, new_keys, there)
        tl.store(births_at, new_births, there)
        tl.store(replacements_at, replacements)
    return chosen, replacements % RESUM == 0, filled


@triton.jit
def _slot_sum(
    slots, capacity, chosen, item, start, first_block, block, place, has, left,
    SLOT: tl.constexpr, WIDE: tl.constexpr, ALIGNED: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Sum the slots in their order, with ``item`` in the place of the chosen one."""
    total = tl.zeros_like(item)
    for i in range(capacity):
        at = slots + 2 * i
        part = _part(tl.load(at), start, SLOT, ALIGNED)
        scales = _scales(tl.load(at + 1), first_block)
        value = _load(part, scales, block, place, has, left, SLOT, WIDE, MASKED)
        total += tl.where(i == chosen, item, value)
    return total
