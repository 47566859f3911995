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
from steppe._engines.base.method import RESUM_EVERY
from steppe._engines.gpu import table as gpu_table
from steppe._engines.gpu.elements import (
    BLOCK,
    ROWS,
    bound,
    elements_of,
    load_elements,
    pointer_to,
    read,
    scales_at,
    start_of,
    state_at,
    store_elements,
    write,
)
from steppe._engines.gpu.scalars import pick, run_program, sign_of, step_count

_swap = bound(rules.swap)
_noise_key = bound(number_formats.noise_key)

CHUNK = tl.constexpr(gpu_table.CHUNK // number_formats.BLOCK)
SPAN = tl.constexpr(gpu_table.SPAN // number_formats.BLOCK)
AT_ONCE = tl.constexpr(1024)
RESUM = tl.constexpr(RESUM_EVERY)

_Column = gpu_table.RowColumn
(
    INDEX, NUMEL, WHOLE_NUMEL, GROUP, FIRST_SPAN, PROGRAMS, CAPACITY,
    KEYS, BIRTHS, REPLACEMENTS, SUM, MEAN, PARAM_AT, ERROR_AT, STATE_AT,
) = map(tl.constexpr, map(int, _Column))  # fmt: skip
CHUNK_WIDTH = tl.constexpr(len(gpu_table.ChunkColumn))
ROW, START, LOWER, UPPER, WHOLE_BLOCK, FIRST_BLOCK = map(
    tl.constexpr, map(int, gpu_table.ChunkColumn)
)
OWN = tl.constexpr(int(gpu_table.OptionColumn.OWN))
DECAY = tl.constexpr(int(gpu_table.OptionColumn.DECAY))


#: What the arithmetic is done in, by whether parameters are float64.
WIDE = (tl.float32, tl.float64)

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
    sign = sign_of(settings + tl.load(line + GROUP) * setting_width, grad_scale)
    numel = tl.load(line + NUMEL)
    grad = start_of(tl.load(lines + 2 * row), start, PARAM, ALIGNED)

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
    _, element = elements_of(first)
    g = read(grad + element, element < left, MASKED).to(tl.float64) * sign
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
    chunk = chunks + CHUNK_WIDTH * tl.program_id(0)
    row = tl.load(chunk + ROW)
    line = table + row * width
    group = settings + tl.load(line + GROUP) * setting_width
    t = step_count(lines + 2 * row, COUNTED)
    programs = tl.load(line + PROGRAMS).to(tl.int32)

    chosen = -1
    due = False
    filled = tl.full((), 0.0, tl.float64)
    if SLOTS > 0:
        size = _priority(sums, priority, group, row)
        decay = tl.load(group + DECAY)
        chosen, due, filled = _decide(
            line, size, t, decay, arrivals + row, programs, REMEMBER, SLOTS
        )

    values = run_program(t, filled, group, OPTIONS, OPERATIONS, LEFT, RIGHT)
    scalars = pick(values, RESULTS, WIDE)
    if MEAN_SQUARE is not None:
        in_mean = pick(values, IN_MEAN, tl.float64)
        rms = _rms(line, sums + row, in_mean, arrivals + row, programs, MEAN_SQUARE)
        scalars = scalars + (rms.to(WIDE),)

    sign = sign_of(group, grad_scale).to(WIDE)
    key = _noise_key(tl.load(line + INDEX), t.to(tl.int64))
    _advance_chunk(
        line, tl.load(lines + 2 * row), chunk, sign, scalars, chosen, due, key,
        RULE, PARAM, STATE, SLOT, SLOTS, REMEMBER is not None, KEEPS_SUM, WIDE, ALIGNED,
    )  # fmt: skip


@triton.jit
def _priority(sums, priority, group, row):
    """Return the norm by which the row's item is remembered: of all gradients, or of its own."""
    if priority is None:
        size = tl.sqrt(tl.load(sums + row))
    elif sums is None:
        size = tl.load(priority)
    else:
        is_own = tl.load(group + OWN) != 0.0
        size = tl.where(is_own, tl.sqrt(tl.load(sums + row)), tl.load(priority))
    return size


@triton.jit
def _rms(line, sum_at, in_mean, counter, programs, MEAN_SQUARE: tl.constexpr):
    """Bring the mean of the row's second moment up to date; return its root."""
    mean_at = pointer_to(tl.load(line + MEAN), "float64")
    square = tl.load(sum_at) / tl.maximum(tl.load(line + WHOLE_NUMEL), 1).to(tl.float64)
    mean, mean_square = MEAN_SQUARE(tl.load(mean_at), square, *in_mean)
    if _is_last(counter, programs):
        tl.store(mean_at, mean)
    return tl.sqrt(mean_square)


@triton.jit
def _advance_chunk(
    line, grad_address, chunk, sign, scalars, chosen, due, key,
    RULE: tl.constexpr, PARAM: tl.constexpr, STATE: tl.constexpr, SLOT: tl.constexpr,
    SLOTS: tl.constexpr, HAS_BUFFER: tl.constexpr, KEEPS_SUM: tl.constexpr, WIDE: tl.constexpr,
    ALIGNED: tl.constexpr,
):  # fmt: skip
    """Advance a program's chunk of a tensor, without a mask if it is a whole one."""
    start = tl.load(chunk + START)
    lower = tl.load(chunk + LOWER).to(tl.int32)
    upper = tl.load(chunk + UPPER).to(tl.int32)
    whole_block = tl.load(chunk + WHOLE_BLOCK)
    first_block = tl.load(chunk + FIRST_BLOCK)
    capacity = tl.load(line + CAPACITY).to(tl.int32)
    param = start_of(tl.load(line + PARAM_AT), start, PARAM, ALIGNED)
    error = start_of(tl.load(line + ERROR_AT), start, "codes", ALIGNED)
    grad = start_of(grad_address, start, PARAM, ALIGNED)
    total = start_of(tl.load(line + SUM), start, SLOT, ALIGNED)
    parts, scales = state_at(line, start, first_block, STATE, ALIGNED)
    slots = line + STATE_AT + 2 * len(STATE)
    if (lower == 0) & (upper == CHUNK * BLOCK):
        for first in range(0, CHUNK, ROWS):
            _advance(
                param, error, grad, sign, parts, scales, scalars, total, slots, capacity, chosen,
                due, key, start, whole_block, first_block, first, 0, CHUNK * BLOCK,
                RULE, PARAM, STATE, SLOT, SLOTS, HAS_BUFFER, KEEPS_SUM, WIDE, ALIGNED, False,
            )  # fmt: skip
    else:
        for first in range(0, tl.cdiv(upper, BLOCK), ROWS):
            _advance(
                param, error, grad, sign, parts, scales, scalars, total, slots, capacity, chosen,
                due, key, start, whole_block, first_block, first, lower, upper,
                RULE, PARAM, STATE, SLOT, SLOTS, HAS_BUFFER, KEEPS_SUM, WIDE, ALIGNED, True,
            )  # fmt: skip


@triton.jit
def _advance(
    param, error, grad, sign, parts, scales, scalars, total, slots, capacity, chosen, due,
    key, start, whole_block, first_block, first, lower, upper,
    RULE: tl.constexpr, PARAM: tl.constexpr, STATE: tl.constexpr, SLOT: tl.constexpr,
    SLOTS: tl.constexpr, HAS_BUFFER: tl.constexpr, KEEPS_SUM: tl.constexpr, WIDE: tl.constexpr,
    ALIGNED: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Advance one block of one tensor."""
    block, element = elements_of(first)
    has = (element >= lower) & (element < upper)
    p = load_elements(param, error, block, element, has, upper, PARAM, WIDE, MASKED)
    g = read(grad + element, has, MASKED).to(WIDE) * sign
    operands = (p, g)
    for i in tl.static_range(len(STATE)):
        value = load_elements(
            parts[i], scales[i], block, element, has, upper, tl.constexpr(STATE[i]), WIDE, MASKED
        )  # fmt: skip
        operands = operands + (value,)
    if HAS_BUFFER:
        if SLOTS == 0:
            remembered = tl.zeros_like(p)
        elif KEEPS_SUM:
            remembered = read(total + element, has, MASKED)
        else:
            remembered = _slot_sum(
                slots, capacity, -1, p, start, first_block, block, element, has, upper,
                SLOT, WIDE, ALIGNED, MASKED,
            )  # fmt: skip
        operands = operands + (remembered,)
    results = RULE(*operands, *scalars)
    if SLOTS > 0:
        if chosen >= 0:
            _remember(
                results[len(STATE) + 1], remembered, total, slots, capacity, chosen, due,
                key, start, whole_block, first_block, block, element, has, upper,
                len(STATE) + 1, SLOT, KEEPS_SUM, WIDE, ALIGNED, MASKED,
            )  # fmt: skip
    store_elements(
        param, error, results[0], whole_block, block, element, has, upper, key, 0, PARAM, MASKED
    )
    for i in tl.static_range(len(STATE)):
        store_elements(
            parts[i], scales[i], results[i + 1], whole_block, block, element, has, upper, key,
            i + 1, tl.constexpr(STATE[i]), MASKED,
        )  # fmt: skip


# The buffer


@triton.jit
def _remember(
    item, remembered, total, slots, capacity, chosen, due,
    key, start, whole_block, first_block, block, element, has, upper,
    STREAM: tl.constexpr, SLOT: tl.constexpr, KEEPS_SUM: tl.constexpr, WIDE: tl.constexpr,
    ALIGNED: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Store the item in its slot, and its share in the slots' sum where that is kept."""
    at = slots + 2 * chosen
    slot = start_of(tl.load(at), start, SLOT, ALIGNED)
    if KEEPS_SUM:
        if due:
            total_now = _slot_sum(
                slots, capacity, chosen, item, start, first_block, block, element, has, upper,
                SLOT, WIDE, ALIGNED, MASKED,
            )  # fmt: skip
        else:
            total_now = _swap(remembered, read(slot + element, has, MASKED), item)
        write(total + element, total_now, has, MASKED)
    store_elements(
        slot, scales_at(tl.load(at + 1), first_block), item, whole_block, block, element, has,
        upper, key, STREAM, SLOT, MASKED,
    )  # fmt: skip


@triton.jit
def _decide(
    line, priority, t, decay, counter, programs,
    REMEMBER: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """Choose the slot for this step's item, −1 for none, as every program of the tensor does.

    Returns it, whether the slots are then due to be summed afresh, and how many are filled.
    """
    index = tl.arange(0, SLOTS)
    there = index < tl.load(line + CAPACITY).to(tl.int32)
    keys_at = pointer_to(tl.load(line + KEYS), "float64") + index
    births_at = pointer_to(tl.load(line + BIRTHS), "float64") + index
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
    slots, capacity, chosen, item, start, first_block, block, element, has, left,
    SLOT: tl.constexpr, WIDE: tl.constexpr, ALIGNED: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Sum the slots in their order, with ``item`` in the element of the chosen one."""
    total = tl.zeros_like(item)
    for i in range(capacity):
        at = slots + 2 * i
        part = start_of(tl.load(at), start, SLOT, ALIGNED)
        scales = scales_at(tl.load(at + 1), first_block)
        value = load_elements(part, scales, block, element, has, left, SLOT, WIDE, MASKED)
        total += tl.where(i == chosen, item, value)
    return total
