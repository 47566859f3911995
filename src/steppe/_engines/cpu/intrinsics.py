"""What the Numba kernels are made of: numbers at addresses, and functions compiled for the CPU."""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from steppe._engines.base.bind import bind

#: What a sum needs to run in parallel lanes. Nothing else is fast: with contraction or approximate
#: roots a loop's vector and scalar versions differ in the last digit, which of them runs may hang
#: on where the tensors happen to lie, and a resumed run would not be bitwise the run it resumes.
#: It costs nothing, as memory is what limits the loops.
_SUMMING = {"reassoc"}

#: Operands of a kernel that are told apart, so that LLVM need not ask whether they overlap.
SCOPES = 19


def compiled(rule: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a rule for single elements, to be inlined into a kernel's loop."""
    return bind(rule, np, inlined)


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function, to be inlined wherever it is called."""
    wrapped: Callable[..., Any] = njit(forceinline=True, error_model="numpy")(function)
    return wrapped


@njit(forceinline=True, fastmath=_SUMMING)
def add_reassociable(total: float, value: float) -> Any:
    """Add a value to a sum whose order does not matter."""
    return total + value


@intrinsic
def scratch(typing_context: Any, size: Any) -> Any:
    """Return the address of ``size`` bytes, a literal, that last as long as the kernel's call."""
    if not isinstance(size, types.IntegerLiteral):
        return None

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        room_type = ir.ArrayType(ir.IntType(8), size.literal_value)
        room = cgutils.alloca_once(builder, room_type)  # type: ignore[no-untyped-call]
        room.align = 64
        return builder.ptrtoint(room, ir.IntType(64))

    return types.int64(size), generate


@intrinsic
def prefer_vectors(typing_context: Any, bits: Any) -> Any:
    """Have the function that calls it compiled to vectors of so many bits, a literal.

    LLVM takes it as a preference: a processor without such vectors gets those that it has.
    """
    if not isinstance(bits, types.IntegerLiteral):
        return None

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        # llvmlite knows attributes of a single word only, and refuses others in its own ``add``.
        attribute = f'"prefer-vector-width"="{bits.literal_value}"'
        set.add(builder.function.attributes, attribute)
        return context.get_dummy_value()

    return types.void(bits), generate


@intrinsic
def fetch_increment(typing_context: Any, counter: Any) -> Any:
    """Return the int64 at an address and add 1 to it, as one atomic operation."""
    return types.int64(types.int64), _change("add", "monotonic")


@intrinsic
def fetch_decrement(typing_context: Any, counter: Any) -> Any:
    """Return the int64 at an address and subtract 1, atomically; orders memory both ways."""
    return types.int64(types.int64), _change("sub", "acq_rel")


@intrinsic
def publish(typing_context: Any, flag: Any) -> Any:
    """Write -1 at an address; a thread that reads it sees all that was written before."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        builder.store_atomic(_WORD(-1), _word(builder, arguments[0]), "release", 8)
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def is_published(typing_context: Any, flag: Any) -> Any:
    """Whether :func:`publish` has written -1 at an address."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        found = builder.load_atomic(_word(builder, arguments[0]), "acquire", 8)
        return builder.icmp_signed("==", found, _WORD(-1))

    return types.boolean(types.int64), generate


@intrinsic
def _called(typing_context: Any, function: Any) -> Any:
    """Call the C function of no arguments at an address, that returns an int32."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(32), [])
        found = builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), [])
        return builder.sext(found, _WORD)

    return types.int64(types.int64), generate


@intrinsic
def status_of(typing_context: Any, function: Any, handle: Any, out: Any) -> Any:
    """Call the C function at an address with a handle and an address to write to."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(32), [_WORD, _WORD])
        found = builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), arguments[1:])
        return builder.sext(found, _WORD)

    return types.int64(types.int64, types.int64, types.int64), generate


_WORD = ir.IntType(64)


def _word(builder: ir.IRBuilder, address: Any) -> Any:
    return builder.inttoptr(address, _WORD.as_pointer())


def _change(operation: str, ordering: str) -> Any:
    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        return builder.atomic_rmw(operation, _word(builder, arguments[0]), _WORD(1), ordering)

    return generate


@intrinsic
def load(typing_context: Any, address: Any, index: Any, dtype: Any, scope: Any) -> Any:
    """Return number ``index`` of those of type ``dtype`` that lie from ``address`` on.

    ``scope``, a literal, numbers the kernel's operands: no two of them overlap.
    """
    if not isinstance(scope, types.IntegerLiteral):
        return None
    number = dtype.dtype
    signature = number(types.int64, types.int64, dtype, scope)

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        pointer = _element(context, builder, number, *arguments[:2])
        value = builder.load(pointer, align=number.bitwidth // 8)
        _mark(builder, value, scope.literal_value)
        return value

    return signature, generate


@intrinsic
def store(typing_context: Any, address: Any, index: Any, value: Any, scope: Any) -> Any:
    """Write number ``index`` of those of the type of ``value`` that lie from ``address`` on."""
    if not isinstance(scope, types.IntegerLiteral):
        return None
    signature = types.void(types.int64, types.int64, value, scope)

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        pointer = _element(context, builder, value, *arguments[:2])
        written = builder.store(arguments[2], pointer, align=value.bitwidth // 8)
        _mark(builder, written, scope.literal_value)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def load_float16(typing_context: Any, address: Any, index: Any, scope: Any) -> Any:
    """Return a float16 as float32."""
    if not isinstance(scope, types.IntegerLiteral):
        return None
    signature = types.float32(types.int64, types.int64, scope)

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        base = builder.inttoptr(arguments[0], ir.HalfType().as_pointer())
        value = builder.load(builder.gep(base, [arguments[1]]), align=2)
        _mark(builder, value, scope.literal_value)
        return builder.fpext(value, ir.FloatType())

    return signature, generate


@intrinsic
def store_float16(typing_context: Any, address: Any, index: Any, value: Any, scope: Any) -> Any:
    """Round to the nearest float16 and write it."""
    if not isinstance(scope, types.IntegerLiteral):
        return None
    signature = types.void(types.int64, types.int64, types.float32, scope)

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        base = builder.inttoptr(arguments[0], ir.HalfType().as_pointer())
        half = builder.fptrunc(arguments[2], ir.HalfType())
        written = builder.store(half, builder.gep(base, [arguments[1]]), align=2)
        _mark(builder, written, scope.literal_value)
        return context.get_dummy_value()

    return signature, generate


def _element(context: Any, builder: ir.IRBuilder, number: Any, address: Any, index: Any) -> Any:
    base = builder.inttoptr(address, context.get_data_type(number).as_pointer())
    return builder.gep(base, [index])


def _mark(builder: ir.IRBuilder, instruction: Any, scope: int) -> None:
    """Tell LLVM that the operand overlaps with none of another scope."""
    module = builder.module
    domain = module.add_metadata([ir.MetaDataString(module, "steppe")])
    scopes = [
        module.add_metadata([ir.MetaDataString(module, f"steppe.{i}"), domain])
        for i in range(SCOPES)
    ]
    instruction.set_metadata("alias.scope", module.add_metadata([scopes[scope]]))
    others = scopes[:scope] + scopes[scope + 1 :]
    instruction.set_metadata("noalias", module.add_metadata(others))


@njit(forceinline=True)
def thread_number(function: int, arrivals: int) -> Any:
    """Return which thread this is: what a C function says, or else in the order of arrival."""
    return _called(function) if function else fetch_increment(arrivals)  # type: ignore[call-arg]
