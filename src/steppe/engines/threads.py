"""Run a compiled kernel on several threads: torch's own OpenMP, where it has one."""

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch

# A second pool of threads would wait for work in loops beside torch's, each taking the cores from
# the other for milliseconds. Threads do not survive a fork, and OpenMP hangs a process that tries:
# this is the process that has started them, if any has.
_started_in: int | None = None


def run(kernel: Any, arguments: int) -> None:
    """Call ``kernel(arguments)`` on as many threads as torch uses, and wait for all.

    Parameters
    ----------
    kernel
        A compiled ``numba.cfunc`` of one address, which shares the work out by itself.
    arguments
        The address.
    """
    global _started_in
    threads = torch.get_num_threads()
    if threads == 1 or _started_in not in (None, os.getpid()):
        kernel.ctypes(arguments)
        return
    _started_in = os.getpid()
    if parallel := _openmp():
        parallel(kernel.address, arguments, threads, 0)
        return
    list(_pool(threads).map(kernel.ctypes, [arguments] * threads))


@cache
def _openmp() -> Any:
    """Return GOMP_parallel of the OpenMP library that torch is linked to, or None."""
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        function = ctypes.CDLL(str(library)).GOMP_parallel
    except (OSError, AttributeError):
        return None
    function.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    function.restype = None
    return function


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="steppe")
