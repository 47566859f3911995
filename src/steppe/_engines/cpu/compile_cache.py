"""Kernels compiled once and kept as native code on disk.

Numba has a cache of its own, but before it loads anything it takes half a second to learn all of
NumPy's functions, which these kernels do not call.
"""

import ctypes
import hashlib
import logging
import os
import sys
from dataclasses import dataclass, field
from functools import cache
from threading import RLock
from time import perf_counter
from types import CodeType, FunctionType, ModuleType
from typing import Any

import llvmlite
import llvmlite.binding as llvm
import numba
from numba import _helperlib
from numba.core import config
from numba.core.runtime import _nrt_python  # type: ignore[attr-defined]

from steppe._engines.base import bind, number_formats
from steppe._engines.base.method import Function, Method
from steppe._engines.cpu import bit_ops, intrinsics
from steppe._engines.cpu.codegen import norm_source, rules_of, slot_sums_source, update_source
from steppe._engines.cpu.kernel_files import kernel_directory, read_kernel, write_kernel
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
def update_kernel(method: Method, formats: Formats, vectors: int) -> Native:
    """Return ``update`` of a method in given number formats; see ``vector_width.py``."""
    name = "_".join([method.rule.__name__, *dict.fromkeys([formats.param, *formats.state])])
    rules = rules_of(method, formats)
    return _native(_Source(name, "update", update_source(method, formats, vectors), rules))


@cache
def norm_kernel(format: str, by_blocks: bool) -> Native:
    """Return ``square_sums``, of gradients in a number format."""
    return _native(_Source(f"norm_{format}", "square_sums", norm_source(format, by_blocks)))


@cache
def slot_kernel(format: str) -> Native:
    """Return ``sum_slots``, of slots in full precision."""
    return _native(_Source(f"slots_{format}", "sum_slots", slot_sums_source(format)))


@cache
def kernel_of(name: str, function: str, text: str) -> Native:
    """Return a function of one address, of a source that is no method's."""
    return _native(_Source(name, function, text))


def digest_of(text: str) -> bytes:
    """Hash a source and all that kernels depend on beside it, such as the processor."""
    return _Source("", "", text).digest()


@dataclass(frozen=True)
class _Source:
    """What a kernel is made of.

    Attributes
    ----------
    name
        What files and messages call it.
    function
        The kernel's name in the text.
    text
        Python source.
    rules
        What the text knows as ``rules``.
    """

    name: str
    function: str
    text: str
    rules: dict[str, Function] = field(default_factory=dict)

    def digest(self) -> bytes:
        """Hash all that the kernel is made of, and for."""
        rules = [(name, _behaviour(rule)) for name, rule in self.rules.items()]
        return hashlib.sha256(repr((self.text, rules, _surroundings())).encode()).digest()

    def compile(self) -> Any:
        """Return the kernel as a C function of Numba's."""
        # Not read from a file: what is compiled is what has been hashed.
        scope = {"__name__": f"steppe_{self.name}", "rules": self.rules}
        exec(compile(self.text, f"<kernel {self.name}>", "exec"), scope)
        return scope[self.function]


# Of a process that is forked meanwhile, the thread that compiles is no part: locks that it holds in
# Numba and LLVM would be held for ever there. So a fork waits until it has ended.
_compiling = RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_compiling.acquire,
        after_in_parent=_compiling.release,
        after_in_child=_compiling.release,
    )


def _native(source: _Source) -> Native:
    """Load a kernel, or compile it and keep it where that is possible."""
    with _compiling:
        return _loaded_or_compiled(source)


def _loaded_or_compiled(source: _Source) -> Native:
    digest = source.digest()
    why_not = None
    try:
        path = kernel_directory() / f"steppe_{source.name}_{digest.hex()[:16]}.o"
    except OSError as error:
        why_not = error
    else:
        content = read_kernel(path, digest)
        if content is not None and (native := _loaded(content)):
            return native
    _announce()
    start = perf_counter()
    kernel = source.compile()
    seconds = perf_counter() - start
    if why_not is None:
        try:
            write_kernel(path, digest, _content(kernel), source.text)
        except OSError as error:
            why_not = error
    _report(source.name, seconds, why_not)
    return Native(kernel.address, kernel.ctypes, kernel)


def _behaviour(function: Function) -> tuple[Any, ...]:
    """Return what a rule does: its code and that of the helpers that ``bind`` copies with it.

    The code that runs, not the text of its file, which may have been edited since.
    """
    code, outer = function.__code__, function.__globals__
    helpers = [
        (name, _behaviour(outer[name]))
        for name in code.co_names
        if isinstance(outer.get(name), FunctionType)
    ]
    return _instructions(code), function.__defaults__, helpers


def _instructions(value: Any) -> Any:
    """Return what code does, in a form whose ``repr`` is the same wherever it lies."""
    if isinstance(value, frozenset):
        return sorted(map(repr, value))
    if not isinstance(value, CodeType):
        return value
    constants = [_instructions(constant) for constant in value.co_consts]
    names = value.co_names, value.co_varnames, value.co_freevars, value.co_cellvars
    arguments = value.co_argcount, value.co_posonlyargcount, value.co_kwonlyargcount
    how = value.co_code, value.co_exceptiontable, value.co_flags
    return value.co_name, how, constants, names, arguments


def _code_of(module: ModuleType) -> Any:
    """Return what a module does; its loader knows it, also where there is no source file."""
    assert module.__spec__ is not None
    loader: Any = module.__spec__.loader
    return _instructions(loader.get_code(module.__name__))


# What kernels are compiled by; read at once, before anybody can edit it.
_COMPILER = [_code_of(module) for module in (bind, number_formats, intrinsics, bit_ops)]

# Settings of Numba's that change the code.
_SETTINGS = (
    "BOUNDSCHECK",
    "CPU_FEATURES",
    "CPU_NAME",
    "DEBUGINFO_DEFAULT",
    "LOOP_VECTORIZE",
    "OPT",
    "SLP_VECTORIZE",
)


@cache
def _surroundings() -> tuple[Any, ...]:
    """Return what all kernels depend on: who compiles them, how, and for which processor."""
    versions = numba.__version__, llvmlite.__version__, llvm.llvm_version_info, sys.version
    settings = [repr(getattr(config, name)) for name in _SETTINGS]
    machine = (
        llvm.get_process_triple(),
        llvm.get_host_cpu_name(),
        llvm.get_host_cpu_features().flatten(),
    )
    return _COMPILER, versions, settings, machine


_logger = logging.getLogger("steppe")

#: Of kernels that this process could not keep: why, by name.
unkept_kernels: dict[str, str] = {}


@cache
def _announce() -> None:
    """Say once why a step takes seconds.

    A warning, as that is what Python prints where logging has not been set up.
    """
    _logger.warning("steppe is compiling CPU kernels, which takes seconds once on a machine")


def _report(name: str, seconds: float, why_not: OSError | None) -> None:
    """Say for how long a kernel has been compiled, and whether later processes will find it."""
    if why_not is None:
        _logger.warning("steppe has compiled %s in %.1f s", name, seconds)
        return
    unkept_kernels[name] = str(why_not)
    _logger.warning("steppe has compiled %s in %.1f s, not kept: %s", name, seconds, why_not)


def _content(kernel: Any) -> bytes:
    """Return a Numba C function's symbol, those that it refers to, and its machine code."""
    module = kernel._library._final_module
    parts = [*module.functions, *module.global_variables]
    called = [x.name for x in parts if x.is_declaration and not x.name.startswith("llvm.")]
    names = " ".join([kernel._wrapper_name, *called, *_OF_C])
    return f"{names}\n".encode() + bytes(kernel._library._get_compiled_object())


def _loaded(content: bytes) -> Native | None:
    """Load what :func:`_content` has returned, if all that it refers to is there."""
    names, _, machine_code = content.partition(b"\n")
    symbol, *called = names.decode().split()
    _make_ready()
    # LLVM leaves every call unresolved, and says nothing, if it does not find one of them.
    if any(llvm.address_of_symbol(each) is None for each in called):
        return None
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
