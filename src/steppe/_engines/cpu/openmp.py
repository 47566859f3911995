"""The threads that a compiled kernel runs on: torch's own OpenMP, where it has one."""

import ctypes
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from steppe._engines.cpu.compile_cache import Native
from steppe._shared.importing_process import IMPORTED_IN


@dataclass(frozen=True, eq=False)
class Threads:
    """A number of threads, and how to call a kernel on all of them.

    Attributes
    ----------
    count
        Their number.
    number_function
        The address of the C function that tells a thread its number; 0 if there is none.
    prepare
        Given a kernel and the address of its arguments, return the C function of no arguments that
        calls ``kernel(arguments)`` on all threads, and waits for them.
    """

    count: int
    number_function: int
    prepare: Callable[[Native, int], Callable[[], Any]]


# Kept, so that a step finds its threads without a Python call.
@cache
def threads(wanted: int, process: int) -> Threads:
    """Return as many threads as torch uses, but one after a fork.

    Parameters
    ----------
    wanted
        The number of torch's threads.
    process
        This process's identity.
    """
    # Threads do not survive a fork, and OpenMP waits for them for ever. Whether torch had started
    # some before cannot be asked.
    if wanted == 1 or process != IMPORTED_IN:
        return Threads(1, 0, lambda kernel, arguments: partial(kernel.call, arguments))
    return openmp_threads(wanted) or pool_threads(wanted)


def openmp_threads(count: int) -> Threads | None:
    """Return threads of the OpenMP that torch uses; None where it uses another library."""
    path = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        library = ctypes.CDLL(str(path))
        parallel, number = library.GOMP_parallel, library.omp_get_thread_num
    except (OSError, AttributeError):
        return None
    parallel.argtypes = [ctypes.c_void_p] * 2 + [ctypes.c_uint] * 2
    parallel.restype = None
    address = ctypes.cast(number, ctypes.c_void_p).value or 0
    return Threads(
        count,
        address,
        lambda kernel, arguments: partial(parallel, kernel.address, arguments, count, 0),
    )


def pool_threads(count: int) -> Threads:
    """Return threads of Python's.

    A second OpenMP would wait for work in loops beside torch's library, each taking the cores from
    the other for milliseconds.
    """
    pool = ThreadPoolExecutor(count, thread_name_prefix="steppe")

    def call(kernel: Native, arguments: Iterable[int]) -> None:
        list(pool.map(kernel.call, arguments))

    return Threads(count, 0, lambda kernel, arguments: partial(call, kernel, [arguments] * count))
