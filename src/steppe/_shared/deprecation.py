"""Warn of names that will go away, and say what takes their place.

For the public names of every room. A stable name keeps working for at least one minor version
after it is deprecated; README's section "What is stable" makes that promise. Warnings are
``FutureWarning``: Python shows a ``DeprecationWarning`` only to code in ``__main__``, and the
people who have to change something import this package from modules of their own.
"""

import warnings
from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import Any, TypeVar, cast

# Part of every torch since 2.0; in the standard library from Python 3.13.
from typing_extensions import deprecated as _deprecated

F = TypeVar("F", bound=Callable[..., Any])


def deprecated(*, since: str, removed_in: str, use: str) -> Callable[[F], F]:
    """Mark a function or a class as deprecated.

    Calling the function, making an instance or defining a subclass warns, with the caller's line.

    Parameters
    ----------
    since : str
        The version that deprecates it, e.g. "0.3".
    removed_in : str
        The version that will not have it any more.
    use : str
        The call that replaces it, e.g. "steppe.landscape.profile".

    Returns
    -------
    callable
        A decorator.

    Warns
    -----
    FutureWarning
        It names the function or class, both versions and the replacement.

    Examples
    --------
    >>> import warnings
    >>> @deprecated(since="0.3", removed_in="0.4", use="abs")
    ... def magnitude(x):
    ...     return abs(x)
    >>> with warnings.catch_warnings(record=True, action="always") as caught:
    ...     magnitude(-2)
    2
    >>> print(caught[0].message)
    magnitude is deprecated since steppe 0.3 and will be removed in 0.4: use abs
    """

    def mark(thing: F) -> F:
        text = _text(thing.__qualname__, since, removed_in, use)
        return _deprecated(text, category=FutureWarning)(thing)

    return mark


def renamed_argument(old: str, new: str, *, since: str, removed_in: str) -> Callable[[F], F]:
    """Let a function take a keyword argument by its old name too.

    Parameters
    ----------
    old, new : str
        The two names. The function has ``new`` only.
    since, removed_in : str
        As in :func:`deprecated`.

    Returns
    -------
    callable
        A decorator.

    Warns
    -----
    FutureWarning
        The argument is given by its old name.

    Raises
    ------
    TypeError
        When called: the argument is given by both names. When decorating: the function has no
        argument ``new``, or still has ``old``.

    Examples
    --------
    >>> import warnings
    >>> @renamed_argument("clip", "max_grad_norm", since="0.3", removed_in="0.4")
    ... def train(*, max_grad_norm=None):
    ...     return max_grad_norm
    >>> with warnings.catch_warnings(record=True, action="always") as caught:
    ...     train(clip=1.0)
    1.0
    >>> print(caught[0].message)
    train: clip= is deprecated since steppe 0.3 and will be removed in 0.4: use max_grad_norm=
    """

    def rename(function: F) -> F:
        title, inspected = function.__qualname__, signature(function)
        if new not in inspected.parameters or old in inspected.parameters:
            raise TypeError(f"{title} must have an argument {new}, and none that is called {old}")
        text = _text(f"{title}: {old}=", since, removed_in, f"{new}=")

        @wraps(function)
        def call(*positional: Any, **named: Any) -> Any:
            if old in named:
                value = named.pop(old)
                if new in inspected.bind_partial(*positional, **named).arguments:
                    raise TypeError(f"{title} got both {old}= and {new}=: give {new}= only")
                warnings.warn(text, FutureWarning, stacklevel=2)
                named[new] = value
            return function(*positional, **named)

        return cast(F, call)

    return rename


def _text(name: str, since: str, removed_in: str, use: str) -> str:
    return (
        f"{name} is deprecated since steppe {since} and will be removed in {removed_in}: use {use}"
    )
