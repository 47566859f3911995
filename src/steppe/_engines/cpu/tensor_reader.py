"""Read the facts of many tensors in one compiled pass: half of what Python's calls take.

The pass goes through the C functions that torch keeps stable for its compiler (``aoti_torch_*``,
torch/csrc/inductor/aoti_torch/c/shim.h). Where they are not there, or do not tell of some tensors
what Python tells, :func:`steppe._engines.base.tensor_facts.read` reads all.
"""

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from steppe._engines.base import tensor_facts
from steppe._engines.base.tensor_facts import Fact
from steppe._engines.cpu.compile_cache import Native, kernel_of
from steppe._shared.array_address import address_of
from steppe._shared.array_types import Integers

# Of torch's C functions: six that write a fact each, in the order of the facts; two that write
# where sizes and strides begin; one that writes the layout (0: strided); and what ends a handle.
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
    "delete_tensor_object",
)

_SOURCE = '''"""Facts of tensors: written by steppe, may be deleted at any time."""

from numba import cfunc, int64, void

from steppe._engines.cpu.intrinsics import give_back, load, pointer_of, scratch, status_of, store


@cfunc(void(int64))
def read_facts(arguments):
    count = load(arguments, 0, int64, 0)
    dims = load(arguments, 1, int64, 0)
    capsules = load(arguments, 2, int64, 0)
    line = load(arguments, 3, int64, 0)
    functions = load(arguments, 4, int64, 0)
    out = scratch(8)
    for i in range(count):
        handle = pointer_of(load(functions, 0, int64, 0), load(capsules, i, int64, 0))
        store(out, 0, int64(0), 0)
        failed = status_of(load(functions, 9, int64, 0), handle, out)
        failed |= load(out, 0, int64, 0)  # the layout, 0 if strided
        fact = 0
        while fact < 6 and not failed:
            store(out, 0, int64(0), 0)
            failed |= status_of(load(functions, 1 + fact, int64, 0), handle, out)
            store(line, fact, load(out, 0, int64, 0), 0)
            fact += 1
        if failed:
            store(line, 5, int64(-1), 0)
        else:
            known = min(load(line, 5, int64, 0), dims)
            status_of(load(functions, 7, int64, 0), handle, out)
            sizes = load(out, 0, int64, 0)
            status_of(load(functions, 8, int64, 0), handle, out)
            strides = load(out, 0, int64, 0)
            for d in range(known):
                size = load(sizes, d, int64, 0)
                store(line, 6 + d, size, 0)
                if size > 1:
                    store(line, 6 + dims + d, load(strides, d, int64, 0), 0)
        give_back(load(functions, 10, int64, 0), handle)
        line += 8 * (6 + 2 * dims)
'''


class _Reader(NamedTuple):
    """The compiled pass, and what it calls.

    Attributes
    ----------
    handles
        Given tensors, return capsules of handles, each of which the pass ends.
    run
        The pass; it keeps the interpreter's lock, as handles count references.
    functions
        Addresses: of the C function that opens a capsule, then of :data:`_FUNCTIONS`.
    kernel
        What keeps the code in memory.
    """

    handles: Any
    run: Any
    functions: Integers
    kernel: Native


def read(tensors: Sequence[Tensor], dims: int) -> Integers:
    """Read the facts of plain tensors, as :func:`steppe._engines.base.tensor_facts.read` does."""
    reader = _reader()
    if reader is None:
        return tensor_facts.read(tensors, dims)
    return _read_by(reader, tensors, dims)


def _read_by(reader: _Reader, tensors: Sequence[Tensor], dims: int) -> Integers:
    facts = np.zeros((len(tensors), Fact.SIZES + 2 * dims), dtype=np.int64)
    capsules = reader.handles(tensors)
    places = np.fromiter(map(id, capsules), dtype=np.int64, count=len(capsules))
    addresses = map(address_of, (places, facts, reader.functions))
    arguments = np.array((len(tensors), dims, *addresses), dtype=np.int64)
    reader.run(address_of(arguments))
    return facts


@cache
def _reader() -> _Reader | None:
    """Return the compiled pass, if it tells of some tensors what Python tells of them."""
    path = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        library = ctypes.CDLL(str(path))
        found = [ctypes.pythonapi.PyCapsule_GetPointer]
        found += [getattr(library, f"aoti_torch_{name}") for name in _FUNCTIONS]
        handles = torch._C._aoti.unsafe_alloc_void_ptrs_from_tensors
    except (OSError, AttributeError):
        return None
    addresses = [ctypes.cast(each, ctypes.c_void_p).value for each in found]
    kernel = kernel_of("facts", "read_facts", _SOURCE)
    run = ctypes.PYFUNCTYPE(None, ctypes.c_int64)(kernel.address)
    reader = _Reader(handles, run, np.array(addresses, dtype=np.int64), kernel)
    numbers = torch.zeros(40, dtype=torch.float32, device="cpu")
    probes = [
        numbers,
        numbers[3:9].view(2, 3).t(),
        numbers.new_zeros(1, 3, dtype=torch.bfloat16),
        numbers.new_zeros((), dtype=torch.float64),
        numbers.new_zeros(0, 2, dtype=torch.uint8),
        numbers.to_sparse(),
    ]
    is_right = np.array_equal(_read_by(reader, probes, 2), tensor_facts.read(probes, 2))
    return reader if is_right else None
