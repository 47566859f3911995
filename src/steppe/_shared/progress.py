"""Progress bars for work that takes seconds or more, where standard error is a terminal.

Landscape's instruments, downloads and commands show them.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from steppe._shared.interrupts import uninterrupted

_SILENT: ContextVar[bool] = ContextVar("silent", default=False)


@contextmanager
def silent() -> Iterator[None]:
    """Show no bars inside the block, for programs that show one of their own."""
    token = _SILENT.set(True)
    try:
        yield
    finally:
        _SILENT.reset(token)


@contextmanager
def progress(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show a bar; yield a function to call with the number of steps done since its last call.

    Nothing is shown if standard error is no terminal, if Rich is not installed, or inside
    :func:`silent`.

    Parameters
    ----------
    what : str
        Text before the bar, such as "Descents".
    total : int or None
        The largest number of steps there can be; None if it is not known.
    """
    if _SILENT.get() or not sys.stderr.isatty():
        yield lambda steps: None
        return
    try:
        # Ctrl-C in the middle of an import would leave half a module behind.
        with uninterrupted():
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
