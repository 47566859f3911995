"""Look something up by its name, with an error that gives the nearest known name.

Tasks, figures, schedules and all else that users name are found with it.
"""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TypeVar

_T = TypeVar("_T")


def unknown_name_message(kind: str, name: str, known: Iterable[str]) -> str:
    """Return the message for an unknown name: the nearest known name, and all names.

    Examples
    --------
    >>> unknown_name_message("task", "digit", ["digits", "mnist-5k"])
    "no task is called 'digit': did you mean digits? There are digits, mnist-5k"
    """
    known = sorted(known)
    near = get_close_matches(name, known, n=1)
    guess = f"did you mean {near[0]}? " if near else ""
    return f"no {kind} is called {name!r}: {guess}There are {', '.join(known)}"


def check_name(kind: str, name: str, known: Iterable[str]) -> None:
    """Check that a name is one of the known ones.

    Parameters
    ----------
    kind : str
        What is named, such as "task"; for the message.
    name : str
        The name.
    known : iterable of str
        All names.

    Raises
    ------
    TypeError
        The name is no string.
    ValueError
        The name is not known; the message is that of :func:`unknown_name_message`.
    """
    if not isinstance(name, str):
        raise TypeError(f"{kind} must be a name, got {name!r}")
    if name not in known:
        raise ValueError(unknown_name_message(kind, name, known))


def look_up(kind: str, name: str, known: Mapping[str, _T]) -> _T:
    """Return the value of a known name.

    Raises
    ------
    TypeError, ValueError
        The name is not known, see :func:`check_name`.

    Examples
    --------
    >>> look_up("colour", "red", {"red": "#D55E00"})
    '#D55E00'
    """
    check_name(kind, name, known)
    return known[name]
