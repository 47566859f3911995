"""Run a compiled kernel on several threads: torch's own OpenMP, where it has one."""

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch

from steppe._engines.cpu.compile_cache import Native

# A second pool of threads would wait for work in loops beside torch's, each taking the cores from
# the other for milliseconds. Threads do not survive a fork, and OpenMP hangs a process that tries:
# this is the process that has started them, if any has.
_started_in: int | None = None


def count() -> int:
    """Return how many threads a kernel runs on: as many as torch uses, but 1 after a fork."""
    return torch.get_num_threads() if _started_in in (None, os.getpid()) else 1


def numbers() -> int:
    """Return the address of the C function that tells a thread its number, 0 if there is none."""
    library = _openmp()
    if library is None or count() == 1:
        return 0
    return ctypes.cast(library.omp_get_thread_num, ctypes.c_void_p).value or 0


def run(kernel: Native, arguments: int) -> None:
    """Call ``kernel(arguments)`` on :func:`count` threads, and wait for all.

    Parameters
    ----------
    kernel
        A compiled function of one address, which shares the work out by itself.
    arguments
        The address.
    """
    global _started_in
    threads = count()
    if threads == 1:
        kernel.call(arguments)
        return
    _started_in = os.getpid()
    if library := _openmp():
        library.GOMP_parallel(kernel.address, arguments, threads, 0)
        return
    list(_pool(threads).map(kernel.call, [arguments] * threads))


@cache
def _openmp() -> ctypes.CDLL | None:
    """Return the library in which torch finds its OpenMP, or None."""
    path = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        library = ctypes.CDLL(str(path))
        library.GOMP_parallel.argtypes = [ctypes.c_void_p] * 2 + [ctypes.c_uint] * 2
        library.GOMP_parallel.restype = None
        library.omp_get_thread_num.restype = ctypes.c_int
    except (OSError, AttributeError):
        return None
    return library


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="steppe")
