"""Give a rule the module that an engine computes with.

Rules and number formats name their functions ``xp.sqrt``, ``xp.where``; each engine binds them to
NumPy, torch, Numba or Triton, and so all engines run the same rule.
"""

from collections.abc import Callable, Iterable
from dis import get_instructions
from functools import cache
from types import CodeType, FunctionType
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

    The copy knows ``xp``, the helpers of the rule's own module, and Python's built-in names. A rule
    that needs more is refused.

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

    Raises
    ------
    ValueError
        The rule, or a helper, uses what a copy would lack: variables of an enclosing function,
        defaults of keyword-only arguments, functions within it, or globals that are not functions.

    Examples
    --------
    >>> import numpy, torch
    >>> from steppe import rules
    >>> float(bind(rules.denominator, numpy)(4.0, 1.0, 0.5))
    2.5
    >>> bind(rules.denominator, torch)(torch.tensor([4.0, 9.0]), 1.0, 0.5)
    tensor([2.5000, 3.5000])
    """
    _check_is_copied_whole(rule)
    outer = rule.__globals__
    code = rule.__code__
    scope = {"__name__": outer["__name__"], "__builtins__": outer["__builtins__"], "xp": xp}
    for name in code.co_names:
        if isinstance(helper := outer.get(name), FunctionType):
            scope[name] = bind(helper, xp, wrap)
    bound = FunctionType(code, scope, rule.__name__, rule.__defaults__)
    return wrap(bound)


def _check_is_copied_whole(rule: Callable[..., Any]) -> None:
    """Refuse a rule of which :func:`bind` would drop something."""
    code, outer = rule.__code__, rule.__globals__
    name = f"{rule.__module__}.{rule.__qualname__}"
    if code.co_freevars:
        raise ValueError(
            f"{name} uses {_listed(code.co_freevars)} of an enclosing function; expected a "
            "function of a module, which is given all it needs as arguments"
        )
    if rule.__kwdefaults__:
        raise ValueError(
            f"{name} has defaults of the keyword-only arguments {_listed(rule.__kwdefaults__)}; "
            "expected none: leave out the * or the defaults"
        )
    if any(isinstance(constant, CodeType) for constant in code.co_consts):
        raise ValueError(
            f"{name} has a lambda, a comprehension or a function within it, whose helpers would "
            "not be bound; expected a helper of the module"
        )
    read = {i.argval for i in get_instructions(code) if i.opname == "LOAD_GLOBAL"} - {"xp"}
    if others := sorted(x for x in read & outer.keys() if not isinstance(outer[x], FunctionType)):
        raise ValueError(
            f"{name} reads the global {_listed(others)}, which is not a function; expected only "
            "xp, arguments and helpers of its module"
        )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))
