"""The source of a method's Numba kernels, for given number formats."""

from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from textwrap import indent
from typing import Any

from steppe.engines.kernel import Kernel
from steppe.engines.native import SCOPES
from steppe.engines.storage import BLOCK, EIGHT_BITS, is_noisy

#: Bytes of a number in each format, as :func:`steppe.engines.storage.format_of` names them.
BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "signed8": 1, "square8": 1}

_HEADER = '''"""{title}: written by steppe, may be deleted at any time."""

from math import sqrt

from numba import cfunc, float32, float64, int64, njit, uint8, uint16, uint32, void

from steppe.engines.cpu_words import byte, compiled_format, half, larger, word8, word16
from steppe.engines.native import (
    accumulated,
    compiled,
    is_published,
    load,
    load_float16,
    lower,
    publish,
    scratch,
    store,
    store_float16,
    take,
    thread_number,
)
'''

# What is done to one chunk. What it reads of its arguments is named as in ``ARGUMENTS``. Blocks,
# where they matter, are those of the whole tensor; a shard may begin in the middle of one.
_CHUNK = """

@njit(error_model="numpy")
def {name}_chunk(arguments, chunk):
{arguments}
    row = {row}
    begin = {begin}
    end = begin + {size}
{preparation}
{loop}
{body}
{conclusion}
"""

# Each thread has a queue of neighbouring chunks, as memory is fastest read in long runs, and goes
# on with the others' when it is done. A chunk is in the same queue in every kernel and every step,
# so that a core finds it in its own cache.
_SHARED = """

@cfunc(void(int64))
def {name}(arguments):
{arguments}
    own = thread_number(thread_numbers, arrivals)
    for turn in range(threads):
        queue = (own + turn) % threads
        origin = count * queue // threads
        length = count * (queue + 1) // threads - origin
        place = take(counters + 64 * queue)
        while place < length:
            {name}_chunk(arguments, origin + {place})
            place = take(counters + 64 * queue)
"""

# Where a pass over the gradients goes before, a queue is worked through from its end: that is what
# the pass has read last.
_FORWARD, _BACKWARD = "place", "length - 1 - place"

# Where a tensor's mean is needed, chunks go in waves that fit into the cache: each is summed up
# before the one before it is updated, so that nobody waits for the last of a sum. Who takes a
# tensor's last chunk adds up all of them, in their order, and tells the others; who has to wait
# helps with the sums. Queues take turns at runs of chunks.
_IN_PHASES = """

@njit
def nth(place, queue, threads):
    return (place // {run} * threads + queue) * {run} + place % {run}


@njit
def sum_until(arguments, queue, end):
{arguments}
    place = take(counters + 64 * queue)
    chunk = nth(place, queue, threads)
    while chunk < count:
        squares_chunk(arguments, chunk)
        row = load(chunks, 5 * chunk, int64, {tables})
        if lower(pending + 8 * row) == 1:
            sum = 0.0
            begin = load(bounds, row, int64, {tables})
            for i in range(begin, load(bounds, row + 1, int64, {tables})):
                sum += load(sums, i, float64, {tables})
            line = load(lines, row, int64, {tables})
            sign = load(table, line * line_width, float64, {tables})
            square = sum * sign * sign / load(sizes, row, int64, {tables})
            mean, mean_square = mean_rule(load(means, row, float64, {tables}), square, {scalars})
            store(means, row, mean, {tables})
            store(roots, row, sqrt(mean_square), {tables})
            publish(pending + 8 * row)
        if nth(place + 1, queue, threads) >= end:
            return
        place = take(counters + 64 * queue)
        chunk = nth(place, queue, threads)


@njit
def {name}_until(arguments, queue, end):
{arguments}
    place = take(counters + 64 * (threads + queue))
    chunk = nth(place, queue, threads)
    while chunk < count:
        row = load(chunks, 5 * chunk, int64, {tables})
        while not is_published(pending + 8 * row):
            for other in range(threads):
                sum_until(arguments, other, 0)
        {name}_chunk(arguments, chunk)
        if nth(place + 1, queue, threads) >= end:
            return
        place = take(counters + 64 * (threads + queue))
        chunk = nth(place, queue, threads)


@cfunc(void(int64))
def {name}(arguments):
{arguments}
    own = thread_number(thread_numbers, arrivals)
    for wave in range(waves + 1):
        if wave < waves:
            sum_until(arguments, own, load(wave_ends, wave, int64, {tables}))
        if wave > 0:
            {name}_until(arguments, own, load(wave_ends, wave - 1, int64, {tables}))
    for turn in range(threads):
        {name}_until(arguments, (own + turn) % threads, count)
"""

_RUN = 64

#: What a kernel is given, as one array of integers: what tells threads apart, see
#: :mod:`steppe.engines.threads`; the numbers of chunks and waves; the widths of two tables; and the
#: addresses of tables.
ARGUMENTS = (
    "thread_numbers",
    "arrivals",
    "threads",
    "counters",
    "count",
    "waves",
    "slot_width",
    "line_width",
    "tensors",
    "scales",
    "slots",
    "slot_scales",
    "stored",
    "past_lines",
    "past_table",
    "identities",
    "chunks",
    "lines",
    "table",
    "sums",
    "roots",
    "means",
    "wave_ends",
    "pending",
    "bounds",
    "sizes",
)

Lines = list[str]

_AT_ONCE = """\
    for start in range(begin, end, 1 << 62):
        size = end - start
"""
_BY_BLOCKS = """\
    place = {place}
    lane = place % {block}
    for edge in range(begin - lane, end, {block}):
        start = max(edge, begin)
        size = min(edge + {block}, end) - start
        nth = (start - begin + lane) // {block}
        at = place + start - begin
        cell = uint32(place // {block} + nth)
        block = {before} + nth
"""


@dataclass(frozen=True)
class Operand:
    """One tensor of a kernel, of which a block of elements is at hand.

    Attributes
    ----------
    name
        Its name in the rule.
    format
        Its number format.
    number
        Which operand it is; no two overlap.
    address, scale
        Expressions of where its elements, and in 8 bits its scales, begin.
    stream
        Which noise rounds it.
    """

    name: str
    format: str
    number: int
    address: str
    scale: str = ""
    stream: int = 0

    @property
    def is_coded(self) -> bool:
        """Whether it has 8 bits and a scale for each block."""
        return self.format in EIGHT_BITS

    @property
    def is_noisy(self) -> bool:
        """Whether it is rounded stochastically."""
        return is_noisy(self.format)

    def open(self) -> Lines:
        """Find the block."""
        lines = [f"{self.name} = {self.address} + start * {BYTES[self.format]}"]
        if self.is_coded:
            scale = f"load({self.scale}, block, float32, {self.number})"
            lines.append(f"{self.name}_scale = {scale}")
        return lines

    def load(self) -> str:
        """Return the expression of element ``i``."""
        if self.format == "float16":
            return f"load_float16({self.name}, i, {self.number})"
        if self.format == "bfloat16":
            return f"from_bfloat16(word16(load({self.name}, i, uint16, {self.number})))"
        if self.is_coded:
            code = f"word8(load({self.name}, i, uint8, {self.number}))"
            return f"from_{self.format}({code}, {self.name}_scale)"
        return f"load({self.name}, i, {self.format}, {self.number})"

    def open_store(self) -> Lines:
        """Prepare to write the block."""
        lines = []
        if self.is_noisy:
            lines.append(f"{self.name}_offset = noise_offset(key, uint32({self.stream}), cell)")
        if self.is_coded:
            lines.append(f"{self.name}_largest = uint32(0)")
        return lines

    def store(self, value: str) -> Lines:
        """Write element ``i``; in 8 bits, put it aside until the block's scale is known."""
        if self.format == "float16":
            return [f"store_float16({self.name}, i, float32({value}), {self.number})"]
        if self.format == "bfloat16":
            word = f"to_bfloat16(float32({value}), {self._noise})"
            return [f"store({self.name}, i, half({word}), {self.number})"]
        if not self.is_coded:
            return [f"store({self.name}, i, {self.format}({value}), {self.number})"]
        largest = f"{self.name}_largest"
        return [
            f"{self.name}_new = float32({value})",
            f"store({self.name}_aside, i, {self.name}_new, {self._aside})",
            f"{largest} = larger({largest}, size_word({self.name}_new))",
        ]

    def close(self) -> Lines:
        """Write what was put aside."""
        if not self.is_coded:
            return []
        scale, inverse = f"{self.name}_new_scale", f"{self.name}_inverse"
        number = f"load({self.name}_aside, i, float32, {self._aside})"
        code = f"byte(to_{self.format}({number}, {inverse}, {self._noise}))"
        return [
            f"{scale} = scale_{self.format}({self.name}_largest)",
            f"{inverse} = float32(1.0) / {scale}",
            f"store({self.scale}, block, {scale}, {self.number})",
            "for i in range(size):",
            f"    store({self.name}, i, {code}, {self.number})",
        ]

    @property
    def aside(self) -> Lines:
        """Make room for what is put aside."""
        return [f"{self.name}_aside = scratch({4 * BLOCK})"] if self.is_coded else []

    @property
    def _aside(self) -> int:
        return self.number + _MOST_OPERANDS

    @property
    def _noise(self) -> str:
        return f"noise({self.name}_offset, uint32(at + i))"


# Scopes of operands, of what each puts aside, of the slots' sum, and of all tables.
_MOST_OPERANDS = SCOPES // 2
_TOTAL_ASIDE, _TABLES = SCOPES - 2, SCOPES - 1


_STORE_SUM = f"    store(sums, chunk, sum, {_TABLES})"


@dataclass(frozen=True)
class Formats:
    """Number formats of a kernel's tensors.

    Attributes
    ----------
    param
        Of parameters and gradients.
    state
        Of each tensor of the state, and last of the slots, where there are some.
    sharded
        Whether other processes hold more of the tensors, so that kernels cannot sum them up.
    """

    param: str
    state: tuple[str, ...]
    sharded: bool = False

    @property
    def wide(self) -> str:
        """What is computed in."""
        return "float64" if self.param == "float64" else "float32"

    def defers(self, kernel: Kernel) -> bool:
        """Whether a step stores what the step before it was to remember.

        The norm that decides it is then summed up in passing; before the step it would take a
        pass over all gradients. Slots in low precision would be given a momentum that has itself
        been rounded.
        """
        in_full = len(self.state) == len(kernel.state) or self.state[-1] == self.wide
        return kernel.item is not None and in_full


def update_source(kernel: Kernel, formats: Formats) -> str:
    """Return the source of ``update``."""
    arguments = list(signature(kernel.rule).parameters)
    operands, slot = _operands(arguments, kernel, formats)
    written = [operands[0], *operands[2:]]
    everything = [*operands, *([slot] if slot else [])]
    is_plain = not any(operand.is_noisy for operand in everything)
    defers = formats.defers(kernel)
    scalars = kernel.scalar_names
    inputs = _inputs(operands, formats) | {"total": "total_here"}
    call = f"rule({', '.join(inputs.get(name, name) for name in arguments)})"

    outputs = [f"new_{operand.name}" for operand in written]
    outputs += ["item"] if kernel.buffer is not None else []
    loop = [f"{', '.join(outputs)} = {call}"]
    for operand in written:
        loop += operand.store(f"new_{operand.name}")
    body = [line for operand in operands for line in operand.open()]
    body += [line for operand in written for line in operand.open_store()]
    body += _with_buffer(kernel, formats, operands, slot, loop) if kernel.buffer else _loop(loop)
    body += [line for operand in written for line in operand.close()]
    # In a loop of its own, so that it adds up in the same order whether the row stores or not.
    body += _loop([f"sum = accumulated(sum, {_square(operands[1])})"]) if defers else []

    preparation = _scalars([name for name in scalars if name != "rms"], formats.wide)
    preparation += ["sum = 0.0"] if defers else []
    conclusion = _STORE_SUM if defers else ""
    if not is_plain:
        number, step = (f"uint32({_cell('identities', 'row', i, 2)})" for i in range(2))
        preparation.append(f"key = noise_key({number}, {step})")
    preparation += [line for operand in everything for line in operand.aside]
    if slot and slot.is_noisy:
        preparation.append(f"total = scratch({BYTES[formats.wide] * BLOCK})")
    title = f"The rule {kernel.rule.__name__} in {formats.param}, state {', '.join(formats.state)}"
    text = _HEADER.format(title=title) + _definitions(kernel, formats, everything)
    if kernel.mean_square is not None:
        preparation.append(f"rms = {formats.wide}(load(roots, row, float64, {_TABLES}))")
    if kernel.mean_square is None or formats.sharded:
        place = _FORWARD if kernel.buffer is None or defers else _BACKWARD
        text += _chunk("update", preparation, body, is_plain, conclusion)
        return text + _filled(_SHARED, "update", place=place)
    text += _sums("squares", operands[1]) + _chunk("update", preparation, body, is_plain)
    in_mean = ", ".join(_scalar(kernel, name) for name in kernel.mean_scalars)
    return text + _filled(_IN_PHASES, "update", run=_RUN, scalars=in_mean)


def norm_source(format: str) -> str:
    """Return the source of ``square_sums``, of gradients at the only column of ``tensors``."""
    g = Operand("g", format, 1, _cell("tensors", "row", 0, 1))
    text = _HEADER.format(title=f"Sums of squares in {format}") + _format_definitions([g])
    return text + _sums("square_sums", g) + _filled(_SHARED, "square_sums", place=_FORWARD)


def settle_source(kernel: Kernel, formats: Formats) -> str:
    """Return the source of ``settle``, which stores what a deferring step has left to store."""
    operands, slot = _operands(list(signature(kernel.rule).parameters), kernel, formats)
    assert slot is not None
    needed = [x for x in operands if x.name in signature(_item(kernel)).parameters]
    body = [line for operand in (*needed, slot) for line in operand.open()]
    body += [_total_begin(kernel, formats)]
    body += _loop(_storing("past_item", kernel, formats, operands, slot))
    index = f"index = load(stored, row, int64, {_TABLES})"
    preparation = [index, *_past_scalars(kernel, formats)]
    text = _HEADER.format(title=f"What {kernel.rule.__name__} remembers, in {formats.param}")
    text += _buffer_definitions(kernel)
    text += _format_definitions(needed)
    text += _chunk("settle", preparation, body, is_plain=True)
    return text + _filled(_SHARED, "settle", place=_FORWARD)


def slot_sums_source(format: str) -> str:
    """Return the source of ``sum_slots``, into the only column of ``tensors``."""
    body = [f"total = {_cell('tensors', 'row', 0, 1)} + start * {BYTES[format]}"]
    body += _summed(_slot(format, 1), format)
    text = _HEADER.format(title=f"Sums of slots in {format}")
    return (
        text + _chunk("sum_slots", [], body, True) + _filled(_SHARED, "sum_slots", place=_FORWARD)
    )


def _square(g: Operand) -> str:
    return f"float64({g.load()}) * float64({g.load()})"


def _sums(name: str, g: Operand) -> str:
    """Sum the squares of a chunk of the gradient."""
    body = [*g.open(), *_loop([f"sum = accumulated(sum, {_square(g)})"])]
    return _chunk(name, ["sum = 0.0"], body, is_plain=True, conclusion=_STORE_SUM)


def _operands(
    arguments: list[str], kernel: Kernel, formats: Formats
) -> tuple[list[Operand], Operand | None]:
    """Return the parameter, the gradient and the state; and the slots, where there are some."""
    count = len(kernel.state)
    width = _width(kernel)
    operands = [
        Operand("p", formats.param, 0, _cell("tensors", "row", 0, width)),
        Operand("g", formats.param, 1, _cell("tensors", "row", 1, width)),
    ]
    for i, (name, format) in enumerate(zip(arguments[2 : 2 + count], formats.state, strict=False)):
        address, scale = _cell("tensors", "row", 2 + i, width), _cell("scales", "row", i, count)
        operands.append(Operand(name, format, 2 + i, address, scale, stream=1 + i))
    if len(formats.state) == count:
        return operands, None
    return operands, _slot(formats.state[count], 2 + count)


def _slot(format: str, number: int) -> Operand:
    """Return slot ``index`` of the row."""
    address, scale = (
        _cell(name, "row", "index", "slot_width") for name in ("slots", "slot_scales")
    )
    return Operand("slot", format, number, address, scale, stream=number - 1)


def _width(kernel: Kernel) -> int:
    """Return the number of addresses in a row of ``tensors``."""
    return 2 + len(kernel.state) + (kernel.buffer is not None)


def _scalar(kernel: Kernel, name: str, table: str = "table", line: str = "line") -> str:
    """Return the expression of one of the rule's scalars, in float64."""
    place = 1 + kernel.scalar_names.index(name)
    return _cell(table, line, place, "line_width", "float64")


def _with_buffer(
    kernel: Kernel, formats: Formats, operands: list[Operand], slot: Operand | None, loop: Lines
) -> Lines:
    """Put the slots' sum before the loop, and where this row stores, the storing into it."""
    if slot is None:
        return _loop([f"total_here = {formats.wide}(0.0)", *loop])
    defers = formats.defers(kernel)
    here = f"total_here = {_total(formats)}"
    before, after = [here], []
    opening, closing = [*slot.open(), *slot.open_store()], slot.close()
    if defers:
        before = _storing("past_item", kernel, formats, operands, slot)
        opening += _past_scalars(kernel, formats)
    elif not slot.is_noisy:
        after = _swapped("item", formats, slot)
    after += [] if defers else slot.store("item")
    return [
        *(_summed(slot, formats.wide) if slot.is_noisy else [_total_begin(kernel, formats)]),
        f"index = load(stored, row, int64, {_TABLES})",
        "if index < 0:",
        *_indented(_loop([here, *loop])),
        "else:",
        *_indented([*opening, *_loop([*before, *loop, *after]), *closing]),
    ]


def _storing(
    name: str, kernel: Kernel, formats: Formats, operands: list[Operand], slot: Operand
) -> Lines:
    """Store what the step before was to remember, before its state is overwritten."""
    inputs = _inputs(operands, formats)
    arguments = signature(_item(kernel)).parameters
    item = f"item_of({', '.join(inputs.get(x, f'past_{x}') for x in arguments)})"
    return [f"{name} = {item}", *_swapped(name, formats, slot), *slot.store(name)]


def _swapped(item: str, formats: Formats, slot: Operand) -> Lines:
    return [
        f"total_here = swap({_total(formats)}, {slot.load()}, {item})",
        f"store(total, i, total_here, {_TOTAL_ASIDE})",
    ]


def _past_scalars(kernel: Kernel, formats: Formats) -> Lines:
    """Read what the item takes of the scalars of the step before."""
    lines = [f"past_line = load(past_lines, row, int64, {_TABLES})"]
    for name in signature(_item(kernel)).parameters:
        if name in kernel.scalar_names:
            cell = _scalar(kernel, name, "past_table", "past_line")
            lines.append(f"past_{name} = {formats.wide}({cell})")
    return lines


def _item(kernel: Kernel) -> Callable[..., Any]:
    assert kernel.item is not None
    return kernel.item


def _total(formats: Formats) -> str:
    return f"load(total, i, {formats.wide}, {_TOTAL_ASIDE})"


def _total_begin(kernel: Kernel, formats: Formats) -> str:
    """Find the block of the slots' sum that lies in memory."""
    address = _cell("tensors", "row", 2 + len(kernel.state), _width(kernel))
    return f"total = {address} + start * {BYTES[formats.wide]}"


def _summed(slot: Operand, wide: str) -> Lines:
    """Sum the slots into ``total``, in their order."""
    so_far = f"load(total, i, {wide}, {_TOTAL_ASIDE})"
    add = f"store(total, i, {so_far} + {wide}({slot.load()}), {_TOTAL_ASIDE})"
    return [
        *_loop([f"store(total, i, {wide}(0.0), {_TOTAL_ASIDE})"]),
        "for index in range(slot_width):",
        *_indented([*slot.open(), *_loop([add])]),
    ]


def _inputs(operands: list[Operand], formats: Formats) -> dict[str, str]:
    inputs = {operand.name: f"{formats.wide}({operand.load()})" for operand in operands}
    return inputs | {"g": f"{inputs['g']} * sign"}


def _scalars(scalars: list[str], wide: str) -> Lines:
    """Lines of the table hold the gradient's factor, then the rule's scalars."""
    names = ["sign", *scalars]
    cells = [_cell("table", "line", i, "line_width", "float64") for i in range(len(names))]
    line = f"line = load(lines, row, int64, {_TABLES})"
    return [line, *(f"{name} = {wide}({cell})" for name, cell in zip(names, cells, strict=True))]


def _cell(table: str, row: str, column: int | str, width: int | str, number: str = "int64") -> str:
    return f"load({table}, {row} * {width} + {column}, {number}, {_TABLES})"


def _definitions(kernel: Kernel, formats: Formats, operands: list[Operand]) -> str:
    """Compile what the kernel calls, and no more: it is what the first step waits for."""
    lines = [f'rule = compiled("{kernel.rule.__name__}")']
    if kernel.mean_square is not None and not formats.sharded:
        lines.append(f'mean_rule = compiled("{kernel.mean_square.__name__}")')
    text = "\n" + "\n".join(lines) + "\n"
    return text + _buffer_definitions(kernel) + _format_definitions(operands)


def _buffer_definitions(kernel: Kernel) -> str:
    if kernel.buffer is None:
        return ""
    item = f'item_of = compiled("{kernel.item.__name__}")\n' if kernel.item else ""
    return 'swap = compiled("swap")\n' + item


def _format_definitions(operands: list[Operand]) -> str:
    names = set()
    for format in {operand.format for operand in operands}:
        if format == "bfloat16" or format in EIGHT_BITS:
            names |= {f"to_{format}", f"from_{format}", "noise_key", "noise_offset", "noise"}
        if format in EIGHT_BITS:
            names |= {f"scale_{format}", "size_word"}
    return "".join(f'{name} = compiled_format("{name}")\n' for name in sorted(names))


def _chunk(name: str, preparation: Lines, body: Lines, is_plain: bool, conclusion: str = "") -> str:
    """Fill the template; blocks matter only where they share scales or noise."""
    row, begin, size, place, before = (_cell("chunks", "chunk", i, 5) for i in range(5))
    loop = _AT_ONCE if is_plain else _BY_BLOCKS.format(place=place, before=before, block=BLOCK)
    return _filled(
        _CHUNK,
        name,
        row=row,
        begin=begin,
        size=size,
        preparation=indent("\n".join(preparation), " " * 4),
        loop=loop.rstrip(),
        body=indent("\n".join(body), " " * 8),
        conclusion=conclusion,
    )


def _filled(template: str, name: str, **pieces: Any) -> str:
    lines = [f"{x} = load(arguments, {i}, int64, {_TABLES})" for i, x in enumerate(ARGUMENTS)]
    arguments = indent("\n".join(lines), " " * 4)
    return template.format(name=name, arguments=arguments, tables=_TABLES, **pieces)


def _loop(lines: Lines) -> Lines:
    return ["for i in range(size):", *_indented(lines)]


def _indented(lines: Lines) -> Lines:
    return [f"    {line}" for line in lines]
