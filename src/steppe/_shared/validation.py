"""Check arguments that are numbers; errors name the argument, its value and what is right.

Test functions, instruments and theory check theirs by it, before anything is computed.
"""

import math
from numbers import Integral, Real
from typing import Any

# What torch's generators take.
_SEEDS = range(-(2**63), 2**64)


def check_number(**values: float) -> None:
    """Refuse the first of the named values that is no real number.

    Raises
    ------
    TypeError
        A value is a string, a bool, a sequence or anything else that is no real number.
    """
    for name, value in values.items():
        if not isinstance(value, Real) or isinstance(value, bool):
            raise TypeError(f"{name} must be a number, got {value!r}")


def check_positive(**values: float) -> None:
    """Refuse the first of the named values that is not a positive number.

    Raises
    ------
    TypeError
        It is no number.
    ValueError
        It is zero, negative or not finite.
    """
    check_number(**values)
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be a finite number > 0, got {value}")


def checked_seed(seed: int) -> int:
    """Return a seed as torch's generators take it.

    Raises
    ------
    TypeError
        It is no integer.
    ValueError
        It has more than 64 bits.
    """
    if not isinstance(seed, Integral) or isinstance(seed, bool):
        raise TypeError(f"seed must be an integer, got {seed!r}")
    if int(seed) not in _SEEDS:
        raise ValueError(f"seed must have at most 64 bits, got {seed}")
    return int(seed)


def checked_weight(found: Any) -> float:
    """Return what a user's ``weight`` function has returned, a tensor of one element too.

    Raises
    ------
    TypeError
        It is no number.
    ValueError
        It is negative, or not finite.

    Examples
    --------
    >>> checked_weight(3)
    3.0
    """
    try:
        weight = float(found)
    except (TypeError, ValueError, RuntimeError):
        shape = getattr(found, "shape", None)
        got = repr(found) if shape is None else f"a {type(found).__name__} of {tuple(shape)}"
        raise TypeError(f"weight must return a number, got {got}") from None
    if not 0 <= weight < math.inf:
        raise ValueError(f"weight must return a finite number of at least 0, got {weight}")
    return weight


def check_integer(least: int = 1, **values: int) -> None:
    """Refuse the first of the named values that is not an integer from ``least``.

    Raises
    ------
    TypeError
        It is no integer.
    ValueError
        It is less.
    """
    for name, value in values.items():
        if not isinstance(value, Integral) or isinstance(value, bool):
            raise TypeError(f"{name} must be an integer, got {value!r}")
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
