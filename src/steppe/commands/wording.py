"""Counts, errors and unknown names in words."""

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


def named(kind: str, name: str, known: Mapping[str, _T]) -> _T:
    """Find a thing by its name.

    Raises
    ------
    ValueError
        If there is none of that name, as :func:`unknown` says it.
    """
    if name not in known:
        raise ValueError(unknown(kind, name, known))
    return known[name]


def many(count: int, thing: str) -> str:
    """Write a number of things.

    Examples
    --------
    >>> many(1, "seed"), many(3, "seed")
    ('1 seed', '3 seeds')
    """
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def first_line(error: BaseException) -> str:
    r"""Write an error in one line, with its kind where the message alone may say too little.

    Examples
    --------
    >>> first_line(KeyError("lr")), first_line(ValueError("lr is 0\nmore"))
    ("KeyError: 'lr'", 'lr is 0')
    """
    kind, lines = type(error).__name__, str(error).strip().splitlines()
    if not lines:
        return kind
    return lines[0] if type(error) is ValueError else f"{kind}: {lines[0]}"
