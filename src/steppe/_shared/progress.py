"""A bar on a terminal while something takes long."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_SILENT: ContextVar[bool] = ContextVar("silent", default=False)


@contextmanager
def silent() -> Iterator[None]:
    """Show no bars meanwhile: a program may show its own."""
    token = _SILENT.set(True)
    try:
        yield
    finally:
        _SILENT.reset(token)


@contextmanager
def progress(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show a bar; yield what is called with the number of steps done since.

    Nothing is shown where standard error is no terminal, where Rich is not installed, and inside
    :func:`silent`.

    Parameters
    ----------
    what : str
        What is being done.
    total : int or None
        How many steps there are at most, if that is known.
    """
    if _SILENT.get() or not sys.stderr.isatty():
        yield lambda steps: None
        return
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        yield lambda steps: None
        return
    # The stream of now, so that what is called inside can be kept from writing to standard error.
    console = Console(file=sys.stderr)
    # Rich has one live display at a time: what is measured inside shows no bar of its own.
    with Progress(console=console, transient=True) as bars, silent():
        bar = bars.add_task(what, total=total)
        yield lambda steps: bars.advance(bar, steps)
