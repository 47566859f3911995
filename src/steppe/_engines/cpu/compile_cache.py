"""Kernels compiled once and kept as native code on disk.

Numba has a cache of its own, but before it loads anything it takes half a second to learn all of
NumPy's functions, which these kernels do not call.
"""

import ctypes
import hashlib
import importlib.util
import os
import sys
import tempfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import llvmlite
import llvmlite.binding as llvm
import numba
from numba import _helperlib
from numba.core.runtime import _nrt_python  # type: ignore[attr-defined]

from steppe import rules
from steppe._engines.base import number_formats
from steppe._engines.base.method import Method
from steppe._engines.cpu import bit_ops, intrinsics
from steppe._engines.cpu.codegen import norm_source, slot_sums_source, update_source
from steppe._engines.cpu.operands import Formats


@dataclass(frozen=True)
class Native:
    """A compiled function of one address.

    Attributes
    ----------
    address
        Where its code is.
    call
        The function for Python; it runs without the interpreter's lock.
    owner
        What keeps the code in memory.
    """

    address: int
    call: Any = field(repr=False)
    owner: Any = field(repr=False)


@cache
def update_kernel(method: Method, formats: Formats) -> Native:
    """Return ``update`` of a method in given number formats."""
    name = "_".join([method.rule.__name__, formats.param, *dict.fromkeys(formats.state)])
    return _native(name, "update", update_source(method, formats))


@cache
def norm_kernel(format: str, by_blocks: bool) -> Native:
    """Return ``square_sums``, of gradients in a number format."""
    return _native(f"norm_{format}", "square_sums", norm_source(format, by_blocks))


@cache
def slot_kernel(format: str) -> Native:
    """Return ``sum_slots``, of slots in full precision."""
    return _native(f"slots_{format}", "sum_slots", slot_sums_source(format))


@cache
def kernel_of(name: str, function: str, text: str) -> Native:
    """Return a function of one address, of a source that is no method's."""
    return _native(name, function, text)


def _native(name: str, function: str, text: str) -> Native:
    path = _directory() / f"steppe_{name}_{_digest(text)}.py"
    code = path.with_suffix(".o")
    if not code.exists():
        _write(path, text.encode())
        _write(code, _compiled(getattr(_module(path), function)))
    names, _, machine_code = code.read_bytes().partition(b"\n")
    symbol, *called = names.decode().split()
    _make_ready()
    # LLVM leaves every call unresolved, and says nothing, if it does not find one of them.
    if any(llvm.address_of_symbol(each) is None for each in called):
        kernel = getattr(_module(path), function)
        return Native(kernel.address, kernel.ctypes, kernel)
    return _loaded(symbol, machine_code)


def _digest(text: str) -> str:
    """Hash all that a kernel is made of, and for."""
    versions = numba.__version__, llvmlite.__version__, sys.version
    machine = llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    return hashlib.sha256(repr((text, _inlined(), versions, machine)).encode()).hexdigest()[:16]


@cache
def _inlined() -> str:
    """Return the source of the modules whose functions are inlined into kernels.

    As text: to leave out the prose, as a study's identity does, takes 15 to 20 ms in each process.
    """
    modules = (rules, number_formats, intrinsics, bit_ops)
    return "".join(Path(str(module.__file__)).read_text() for module in modules)


def _compiled(kernel: Any) -> bytes:
    """Return a Numba C function's symbol, those that it refers to, and its machine code."""
    module = kernel._library._final_module
    parts = [*module.functions, *module.global_variables]
    called = [x.name for x in parts if x.is_declaration and not x.name.startswith("llvm.")]
    names = " ".join([kernel._wrapper_name, *called, *_OF_C])
    return f"{names}\n".encode() + bytes(kernel._library._get_compiled_object())


def _loaded(symbol: str, machine_code: bytes) -> Native:
    target = llvm.Target.from_default_triple()
    machine = target.create_target_machine(codemodel="jitdefault", jit=True)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(machine_code))
    engine.finalize_object()
    address = engine.get_function_address(symbol)
    return Native(address, ctypes.CFUNCTYPE(None, ctypes.c_int64)(address), engine)


# What LLVM calls by itself, in the place of loops.
_OF_C = ("memset", "memcpy", "memmove")


@cache
def _make_ready() -> None:
    """Prepare LLVM for machine code, and for what it calls of C's and, in errors, of Numba's."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    helpers: dict[str, int] = _helperlib.c_helpers  # type: ignore[attr-defined]
    symbols = {f"numba_{name}": address for name, address in helpers.items()}
    symbols["NRT_Free"] = _nrt_python.c_helpers["Free"]
    library = ctypes.CDLL(None if os.name == "posix" else "msvcrt")
    for name in _OF_C:
        symbols[name] = ctypes.cast(library[name], ctypes.c_void_p).value or 0
    for name, address in symbols.items():
        llvm.add_symbol(name, address)


@cache
def _directory() -> Path:
    """Return the user's cache, or a directory for this process where that cannot be written."""
    place = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "steppe"
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return Path(tempfile.mkdtemp(prefix="steppe-"))
    # Not a name in a shared directory: somebody else could have put code there.
    return place if os.access(place, os.W_OK) else Path(tempfile.mkdtemp(prefix="steppe-"))


def _write(path: Path, content: bytes) -> None:
    """Put the whole file in place at once: other processes may be doing the same."""
    with tempfile.NamedTemporaryFile("wb", dir=path.parent, delete=False) as file:
        file.write(content)
    Path(file.name).replace(path)


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
