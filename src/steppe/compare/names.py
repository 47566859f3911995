"""What to say when a name is not known."""

from collections.abc import Iterable
from difflib import get_close_matches


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
