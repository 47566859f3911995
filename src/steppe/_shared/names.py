"""Things by name, and the error when there is none."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TypeVar

_T = TypeVar("_T")


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Give the nearest known name, and all of them.

    Examples
    --------
    >>> unknown("task", "digit", ["digits", "mnist-5k"])
    "no task is called 'digit': did you mean digits? There are digits, mnist-5k"
    """
    known = sorted(known)
    near = get_close_matches(name, known, n=1)
    guess = f"did you mean {near[0]}? " if near else ""
    return f"no {kind} is called {name!r}: {guess}There are {', '.join(known)}"


def check_name(kind: str, name: str, known: Iterable[str]) -> None:
    """Refuse a name that is not known.

    Raises
    ------
    TypeError
        It is no string.
    ValueError
        There is none of that name, as :func:`unknown` says it.
    """
    if not isinstance(name, str):
        raise TypeError(f"{kind} must be a name, got {name!r}")
    if name not in known:
        raise ValueError(unknown(kind, name, known))


def named(kind: str, name: str, known: Mapping[str, _T]) -> _T:
    """Find a thing by its name.

    Raises
    ------
    TypeError, ValueError
        As :func:`check_name` says.
    """
    check_name(kind, name, known)
    return known[name]
