"""Progress bars for work that takes seconds or more, in terminals and notebooks.

Landscape's instruments, downloads and commands show them.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from html import escape
from typing import Any

from steppe._shared.interrupts import uninterrupted

# Between two updates of a notebook's bar.
_EVERY_S = 0.2

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

    Nothing is shown if standard error is neither a terminal nor a notebook's, if Rich is not
    installed, or inside :func:`silent`.

    Parameters
    ----------
    what : str
        Text before the bar, such as "Descents".
    total : int or None
        The largest number of steps there can be; None if it is not known.
    """
    if _SILENT.get():
        yield lambda steps: None
        return
    if _is_notebook():
        shown = _NotebookBar(what, total)
        try:
            with silent():
                yield shown.advance
        finally:
            shown.remove()
        return
    if not sys.stderr.isatty():
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


def _is_notebook() -> bool:
    """Whether this process is a notebook's kernel, whose outputs can be updated."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and hasattr(shell, "kernel")


class _NotebookBar:
    """A bar below a notebook's cell, of work that takes a while; it goes when the work is done."""

    def __init__(self, what: str, total: int | None) -> None:
        self._what, self._total, self._done = what, total, 0
        self._due = time.monotonic() + _EVERY_S
        self._handle: Any = None

    def advance(self, steps: int) -> None:
        """Note steps that were done, and show them a few times a second."""
        self._done += steps
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + _EVERY_S
        of, bar = "", ""
        if self._total is not None:
            of = f" of {self._total}"
            bar = f' <progress value="{self._done}" max="{self._total}"></progress>'
        self._show(f"{escape(self._what)}: {self._done}{of}{bar}")

    def remove(self) -> None:
        """Take the bar away."""
        if self._handle is not None:
            self._show("")

    def _show(self, text: str) -> None:
        from IPython.display import HTML, display

        if self._handle is None:
            self._handle = display(HTML(text), display_id=True)  # type: ignore[no-untyped-call]
        else:
            self._handle.update(HTML(text))  # type: ignore[no-untyped-call]
