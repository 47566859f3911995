"""How wide a kernel's vectors are: measured once on each machine where there is a choice.

For most of Intel's processors with AVX-512 LLVM prefers vectors of 256 bits, as the first of them
slowed down after wide ones. State in 8 bits costs arithmetic, of which wide vectors do more at
once: for Ice Lake and DualAdam llvm-mca counts 3.7 cycles a number with 256 bits, and 2.7 with 512.
Where wide vectors are slower, or no faster, LLVM's choice stays.

Numbers do not depend on it: a kernel that is compiled so has no sum over elements.
"""

from contextlib import suppress
from functools import cache
from time import perf_counter

import llvmlite.binding as llvm
import numpy as np

from steppe._engines.base.number_formats import BLOCK
from steppe._engines.cpu.compile_cache import Native, digest_of, kernel_of
from steppe._engines.cpu.kernel_files import kernel_directory, read_kernel, write_kernel
from steppe._engines.cpu.operands import TABLE_SCOPE, Operand, format_definitions
from steppe._engines.cpu.templates import header, indented, vectors_of
from steppe._shared.array_address import address_of

# Wide vectors are taken where they save at least that share of the time: more than times scatter.
_LEAST_GAIN = 0.1

# Blocks of numbers that stay in a core's first cache, and passes over them: under a millisecond.
_PASSES, _REPEATS = 1000, 20

_CODES = Operand("codes", "signed8", 0, "")


@cache
def wide_vectors() -> int:
    """Return how many bits kernels' vectors are to have; 0 where it is left to LLVM."""
    if not llvm.get_host_cpu_features().get("avx512f"):
        return 0
    return faster_width(512)


def faster_width(bits: int) -> int:
    """Return ``bits`` where vectors of so many are faster than LLVM's choice, else 0.

    What is measured is kept beside the kernels, where that is possible.
    """
    source = _source(bits)
    digest = digest_of(source)
    try:
        path = kernel_directory() / f"steppe_vectors_{bits}_{digest.hex()[:16]}.txt"
    except OSError:
        return _measured(bits)
    if (kept := read_kernel(path, digest)) is not None:
        return int(kept)
    found = _measured(bits)
    # Where it cannot be kept, kernels cannot either: each process measures and compiles anew.
    with suppress(OSError):
        write_kernel(path, digest, str(found).encode(), source)
    return found


def _measured(bits: int) -> int:
    kernels = [kernel_of(f"vectors_{each}", "probe", _source(each)) for each in (0, bits)]
    # In turn, and the least of each: other work on the machine adds to a time, and never takes.
    times = [[_seconds(kernel) for kernel in kernels] for _ in range(_REPEATS)]
    least, least_wide = np.array(times).min(0)
    return bits if least_wide <= (1 - _LEAST_GAIN) * least else 0


def _seconds(kernel: Native) -> float:
    codes = np.arange(BLOCK, dtype=np.uint8)
    arguments = np.array([address_of(codes)], dtype=np.int64)
    start = perf_counter()
    kernel.call(address_of(arguments))
    return perf_counter() - start


def _source(bits: int) -> str:
    """Do as kernels do with 8-bit state: unpack a block, compute with it, pack it."""
    vectors = "\n".join(indented(vectors_of(bits)))
    return f"""{header("What is measured to choose the width of vectors")}
{format_definitions([_CODES])}

@njit(error_model="numpy")
def probe_block(codes, codes_staged, codes_scale):
{vectors}
    codes_inverse, codes_noise = float32(1.0), uint32(0)
    for i in range({BLOCK}):
        {_CODES.unpack()[0]}
    for i in range({BLOCK}):
        x = {_CODES.load_unpacked()}
        {_CODES.store("x / (sqrt(x * x + float32(1.0)) + float32(1.0))")[0]}
    for i in range({BLOCK}):
        {_CODES.pack()[0]}


@cfunc(void(int64))
def probe(arguments):
    codes = load(arguments, 0, int64, {TABLE_SCOPE})
    codes_staged = scratch({4 * BLOCK})
    for turn in range({_PASSES}):
        probe_block(codes, codes_staged, float32(2.0))
"""
