"""Read address, format, shape and strides of many tensors in one compiled pass.

Dispatch reads them in each step; it takes a fifth of the time of Python's calls.

The pass goes through the C functions that torch keeps stable for its compiler (``aoti_torch_*``,
torch/csrc/inductor/aoti_torch/c/shim.h). They take the address of an ``at::Tensor``, which the
Python object of a tensor holds at an offset that is looked for once in each process. If a function
or the offset is not found, Numba's compiler is off, or the pass and Python disagree about some test
tensors,
:func:`steppe._engines.base.tensor_facts.read` reads all in Python.
"""

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numba.core import config
from torch import Tensor
from torch.nn import Parameter

from steppe._engines.base import tensor_facts
from steppe._engines.base.tensor_facts import Fact
from steppe._engines.cpu.compile_cache import Native, kernel_of
from steppe._shared.array_address import address_of
from steppe._shared.array_types import Integers

# Of torch's C functions: six that write a fact each, in the order of the facts; two that write
# where sizes and strides begin; and one that writes the layout (0: strided).
_FUNCTIONS = (
    "get_data_ptr",
    "get_storage_size",
    "get_storage_offset",
    "get_dtype",
    "get_device_type",
    "get_dim",
    "get_sizes",
    "get_strides",
    "get_layout",
)

_SOURCE = '''"""Facts of tensors: written by steppe, may be deleted at any time."""

from numba import cfunc, int64, void

from steppe._engines.cpu.intrinsics import load, scratch, status_of, store


@cfunc(void(int64))
def read_facts(arguments):
    count = load(arguments, 0, int64, 0)
    dims = load(arguments, 1, int64, 0)
    handles = load(arguments, 2, int64, 0)
    line = load(arguments, 3, int64, 0)
    functions = load(arguments, 4, int64, 0)
    out = scratch(8)
    for i in range(count):
        handle = load(handles, i, int64, 0)
        store(out, 0, int64(0), 0)
        failed = status_of(load(functions, 8, int64, 0), handle, out)
        failed |= load(out, 0, int64, 0)  # the layout, 0 if strided
        fact = 0
        while fact < 6 and not failed:
            store(out, 0, int64(0), 0)
            failed |= status_of(load(functions, fact, int64, 0), handle, out)
            store(line, fact, load(out, 0, int64, 0), 0)
            fact += 1
        if failed:
            store(line, 5, int64(-1), 0)
        else:
            known = min(load(line, 5, int64, 0), dims)
            status_of(load(functions, 6, int64, 0), handle, out)
            sizes = load(out, 0, int64, 0)
            status_of(load(functions, 7, int64, 0), handle, out)
            strides = load(out, 0, int64, 0)
            for d in range(known):
                size = load(sizes, d, int64, 0)
                store(line, 6 + d, size, 0)
                if size > 1:
                    store(line, 6 + dims + d, load(strides, d, int64, 0), 0)
        line += 8 * (6 + 2 * dims)
'''


class _Reader(NamedTuple):
    """The compiled pass, and what it calls.

    Attributes
    ----------
    run
        The pass; it keeps the interpreter's lock, so that no tensor ends meanwhile.
    functions
        Addresses of :data:`_FUNCTIONS`.
    place
        How many bytes into a tensor of Python its ``at::Tensor`` lies.
    kernel
        What keeps the code in memory.
    """

    run: Any
    functions: Integers
    place: int
    kernel: Native


def read(tensors: Sequence[Tensor], dims: int) -> Integers:
    """Read the facts of plain tensors, as :func:`steppe._engines.base.tensor_facts.read` does."""
    reader = _reader()
    if reader is None:
        return tensor_facts.read(tensors, dims)
    return _read_by(reader, tensors, dims)


def _read_by(reader: _Reader, tensors: Sequence[Tensor], dims: int) -> Integers:
    facts = np.zeros((len(tensors), Fact.SIZES + 2 * dims), dtype=np.int64)
    handles = np.fromiter(map(id, tensors), dtype=np.int64, count=len(tensors)) + reader.place
    addresses = map(address_of, (handles, facts, reader.functions))
    arguments = np.array((len(tensors), dims, *addresses), dtype=np.int64)
    reader.run(address_of(arguments))
    return facts


@cache
def _reader() -> _Reader | None:
    """Return the compiled pass, if it agrees with Python about some test tensors."""
    if config.DISABLE_JIT:  # type: ignore[attr-defined]
        return None
    path = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        library = ctypes.CDLL(str(path))
        found = [getattr(library, f"aoti_torch_{name}") for name in _FUNCTIONS]
    except (OSError, AttributeError):
        return None
    numbers = torch.zeros(40, dtype=torch.float32, device="cpu")
    probes = [
        numbers,
        numbers[3:9].view(2, 3).t(),
        numbers[:3].bfloat16().view(1, 3),
        Parameter(numbers[0].double()),
        numbers[:0].byte().view(0, 2),
        numbers.to_sparse(),
    ]
    places = set.intersection(*map(_places, probes))
    if len(places) != 1:
        return None
    addresses = [ctypes.cast(each, ctypes.c_void_p).value for each in found]
    kernel = kernel_of("facts", "read_facts", _SOURCE)
    run = ctypes.PYFUNCTYPE(None, ctypes.c_int64)(kernel.address)
    reader = _Reader(run, np.array(addresses, dtype=np.int64), places.pop(), kernel)
    is_right = np.array_equal(_read_by(reader, probes, 2), tensor_facts.read(probes, 2))
    return reader if is_right else None


def _places(tensor: Tensor) -> set[int]:
    """Return where in a tensor's Python object the address of its ``TensorImpl`` stands.

    That is all that an ``at::Tensor`` holds.
    """
    words = (ctypes.c_int64 * (type(tensor).__basicsize__ // 8)).from_address(id(tensor))
    return {8 * index for index, word in enumerate(words) if word == tensor._cdata}
