"""Give a rule the module that an engine computes with."""

from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import Any


def _unchanged(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


@cache
def bind(
    rule: Callable[..., Any],
    xp: Any,
    wrap: Callable[[Callable[..., Any]], Callable[..., Any]] = _unchanged,
) -> Callable[..., Any]:
    """Return a copy of ``rule`` in which ``xp`` is the given module.

    Parameters
    ----------
    rule
        A function of :mod:`steppe.rules`. The helpers it calls are bound with it.
    xp
        The module to compute with: ``torch``, ``numpy``, ``triton.language``, ….
    wrap
        Applied to the copy and to every copied helper: ``numba.njit``, ``triton.jit``.

    Returns
    -------
    callable
        The bound rule. Equal arguments return the same object, so that engines may compile once.

    Examples
    --------
    >>> import numpy, torch
    >>> from steppe import rules
    >>> float(bind(rules.denominator, numpy)(4.0, 1.0, 0.5))
    2.5
    >>> bind(rules.denominator, torch)(torch.tensor([4.0, 9.0]), 1.0, 0.5)
    tensor([2.5000, 3.5000])
    """
    outer = rule.__globals__
    code = rule.__code__
    scope = {"__name__": outer["__name__"], "__builtins__": outer["__builtins__"], "xp": xp}
    for name in code.co_names:
        if isinstance(helper := outer.get(name), FunctionType):
            scope[name] = bind(helper, xp, wrap)
    bound = FunctionType(code, scope, rule.__name__, rule.__defaults__)
    return wrap(bound)
