"""Templates of the CPU's kernels: how threads share out chunks, and what is done to one."""

from re import findall
from textwrap import indent
from typing import Any

from steppe._engines.base.number_formats import BLOCK
from steppe._engines.cpu.operands import TABLE_SCOPE, Lines, entry

_HEADER = '''"""{title}: written by steppe, may be deleted at any time."""

from math import sqrt

from numba import cfunc, float32, float64, int64, njit, uint8, uint16, uint32, void

from steppe._engines.cpu.bit_ops import byte, compiled_format, half, larger, word8, word16
from steppe._engines.cpu.intrinsics import (
    add_reassociable,
    compiled,
    fetch_decrement,
    fetch_increment,
    is_published,
    load,
    load_float16,
    prefer_vectors,
    publish,
    scratch,
    store,
    store_float16,
    thread_number,
)
'''

# What is done to one chunk. Blocks, where they matter, are those of the whole tensor; a shard may
# begin in the middle of one.
_CHUNK = """

@njit(error_model="numpy")
def {name}_chunk(arguments, chunk):
    # Where the tables lie.
{arguments}
    # Which elements of which row this chunk is.
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
    # This thread's own queue first, then what is left of the others'.
    for turn in range(threads):
        queue = (own + turn) % threads
        origin = count * queue // threads
        length = count * (queue + 1) // threads - origin
        position = fetch_increment(counters + 64 * queue)
        while position < length:
            {name}_chunk(arguments, origin + {position})
            position = fetch_increment(counters + 64 * queue)
"""

# Where a pass over the gradients goes before, a queue is worked through from its end: that is what
# the pass has read last.
FORWARD, BACKWARD = "position", "length - 1 - position"

# Where a tensor's mean is needed, chunks go in waves that fit into the cache: each is summed up
# before the one before it is updated, so that nobody waits for the last of a sum. Who takes a
# tensor's last chunk adds up all of them, in their order, and tells the others; who has to wait
# helps with the sums. Queues take turns at runs of chunks.
_IN_PHASES = """

@njit
def nth(position, queue, threads):
    return (position // {run} * threads + queue) * {run} + position % {run}


@njit
def sum_until(arguments, queue, end):
{arguments}
    position = fetch_increment(counters + 64 * queue)
    chunk = nth(position, queue, threads)
    while chunk < count:
        squares_chunk(arguments, chunk)
        row = load(chunks, 5 * chunk, int64, {tables})
        if fetch_decrement(pending + 8 * row) == 1:
            # The row's last chunk: add all of them up, and tell the others.
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
        if nth(position + 1, queue, threads) >= end:
            return
        position = fetch_increment(counters + 64 * queue)
        chunk = nth(position, queue, threads)


@njit
def {name}_until(arguments, queue, end):
{arguments}
    position = fetch_increment(counters + 64 * (threads + queue))
    chunk = nth(position, queue, threads)
    while chunk < count:
        row = load(chunks, 5 * chunk, int64, {tables})
        while not is_published(pending + 8 * row):
            # Help with the sums while the row's mean is not known.
            for other in range(threads):
                sum_until(arguments, other, 0)
        {name}_chunk(arguments, chunk)
        if nth(position + 1, queue, threads) >= end:
            return
        position = fetch_increment(counters + 64 * (threads + queue))
        chunk = nth(position, queue, threads)


@cfunc(void(int64))
def {name}(arguments):
{arguments}
    own = thread_number(thread_numbers, arrivals)
    # Sum up a wave while the one before it is updated.
    for wave in range(waves + 1):
        if wave < waves:
            sum_until(arguments, own, load(wave_ends, wave, int64, {tables}))
        if wave > 0:
            {name}_until(arguments, own, load(wave_ends, wave - 1, int64, {tables}))
    for turn in range(threads):
        {name}_until(arguments, (own + turn) % threads, count)
"""

# Chunks in a row that go to the same queue.
_RUN = 64

#: What a kernel is given, as one array of integers: what tells threads apart, see
#: :mod:`steppe._engines.cpu.openmp`; the numbers of chunks and waves; the widths of two tables;
#: and the addresses of the arrays that :class:`steppe._engines.cpu.table.CpuTable` describes.
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
    "errors",
)

_AT_ONCE = """\
    for start in range(begin, end, 1 << 62):
        size = end - start
"""
_BY_BLOCKS = """\
    # Block by block of the whole tensor; the first and the last may be partly elsewhere.
    whole_begin = {whole_begin}
    lead = whole_begin % {block}
    for edge in range(begin - lead, end, {block}):
        start = max(edge, begin)
        size = min(edge + {block}, end) - start
        nth = (start - begin + lead) // {block}
        whole_start = whole_begin + start - begin
        whole_block = uint32(whole_begin // {block} + nth)
        block = {before} + nth
"""


def header(title: str) -> str:
    """Return the beginning of a source: what it is, and what it imports."""
    return _HEADER.format(title=title)


def chunk_source(
    name: str, preparation: Lines, body: Lines, is_plain: bool, conclusion: str = ""
) -> str:
    """Return what is done to a chunk; blocks matter only where they share scales or noise."""
    row, begin, size, whole_begin, before = (entry("chunks", "chunk", i, 5) for i in range(5))
    by_blocks = _BY_BLOCKS.format(whole_begin=whole_begin, before=before, block=BLOCK)
    return _filled(
        _CHUNK,
        name,
        row=row,
        begin=begin,
        size=size,
        preparation=indent("\n".join(preparation), " " * 4),
        loop=(_AT_ONCE if is_plain else by_blocks).rstrip(),
        body=indent("\n".join(body), " " * 8),
        conclusion=conclusion,
    )


def shared_source(name: str, order: str = FORWARD) -> str:
    """Return the kernel of which each thread does its own queue's chunks, and then the others'."""
    return _filled(_SHARED, name, position=order)


def phased_source(name: str, scalars: str) -> str:
    """Return the kernel that sums chunks up in waves before it updates them."""
    return _filled(_IN_PHASES, name, run=_RUN, scalars=scalars)


def _filled(template: str, name: str, **parts: Any) -> str:
    """Fill a template in; each of its functions loads the arguments that it uses."""
    text = template.format(name=name, arguments=_ARGUMENTS_HERE, tables=TABLE_SCOPE, **parts)
    functions = [function.rstrip() for function in text.split("\n\n\n")]
    filled = [
        function.replace(_ARGUMENTS_HERE, "\n".join(_loads(function))) for function in functions
    ]
    return "\n\n\n".join(filled) + "\n"


_ARGUMENTS_HERE = "<arguments>"


def _loads(function: str) -> Lines:
    used = set(findall(r"\w+", function))
    return [
        f"    {name} = load(arguments, {i}, int64, {TABLE_SCOPE})"
        for i, name in enumerate(ARGUMENTS)
        if name in used
    ]


def vectors_of(bits: int) -> Lines:
    """Have the function at hand compiled to vectors of so many bits; 0 leaves it to LLVM."""
    return [f"prefer_vectors({bits})"] if bits else []


def loop_over(lines: Lines) -> Lines:
    """Do this to each element of the block at hand."""
    return ["for i in range(size):", *indented(lines)]


def indented(lines: Lines) -> Lines:
    """Put lines into what stands before them."""
    return [f"    {line}" for line in lines]
