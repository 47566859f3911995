"""What the Numba kernels are made of: arrays at addresses, and rules compiled for the CPU."""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, njit, types  # type: ignore[attr-defined]
from numba.extending import intrinsic

from steppe import rules
from steppe.engines.bind import bind

#: What a sum needs to run in parallel lanes. Nothing else is fast: with contraction or approximate
#: roots a loop's vector and scalar versions differ in the last digit, which of them runs may hang
#: on where the tensors happen to lie, and a resumed run would not be bitwise the run it resumes.
#: It costs nothing, as memory is what limits the loops.
SUMMING = {"reassoc"}


def compiled(name: str) -> Callable[..., Any]:
    """Compile a rule for single elements, to be inlined into a kernel's loop."""
    return bind(getattr(rules, name), np, _inlined)


def _inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    wrapped: Callable[..., Any] = njit(forceinline=True, error_model="numpy")(function)
    return wrapped


@intrinsic
def _pointer(typing_context: Any, address: Any, dtype: Any) -> Any:
    """Reinterpret an integer as a pointer to the given number type."""
    signature = types.CPointer(dtype.dtype)(types.int64, dtype)  # type: ignore[no-untyped-call]

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return signature, generate


@njit(forceinline=True)
def array(address: int, size: int, dtype: Any) -> Any:
    """Return the ``size`` numbers that lie at ``address``."""
    return carray(_pointer(address, dtype), size)  # type: ignore[call-arg]
