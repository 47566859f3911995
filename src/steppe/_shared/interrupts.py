"""Signals that ask a process to end: put off, or raised only where nothing is half done.

Python raises a signal's exception wherever it happens to be. In the middle of an import that leaves
half a module behind, which fails later under another name; and libraries that catch everything
swallow it. So a worker notes the signal (:func:`stop_signals`), lets it interrupt training only
(:func:`stopping_at_once`), and asks before it stores anything (:func:`raise_if_stopped`).

An optimizer's step handles no signals: how it ends when Ctrl-C stops it is in
``_engines/dispatch.py``.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

#: What a terminal, a scheduler or a closed connection sends to end a process.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StoppedError(SystemExit):
    """A signal has asked this process to end; the exit status is the shell's, 128 + its number."""


# Signals are the process's, and so is what is known of them.
_received: list[int] = []
_at_once = False


@contextmanager
def stop_signals() -> Iterator[None]:
    """Note SIGINT, SIGTERM and SIGHUP in the block instead of ending or raising.

    A signal that the process was started to ignore, as by ``nohup``, stays ignored.

    Examples
    --------
    >>> with stop_signals():
    ...     signal.raise_signal(signal.SIGTERM)
    ...     try:
    ...         raise_if_stopped()
    ...     except StoppedError as stopped:
    ...         print(stopped.code)
    143
    """
    with _handled(_note):
        try:
            yield
        finally:
            _received.clear()


@contextmanager
def ending_at_once() -> Iterator[None]:
    """Let SIGINT end the process in the block as SIGTERM does, and raise nothing.

    For imports, of which a KeyboardInterrupt may leave a half that is used afterwards.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    with _handled(signal.SIG_DFL, (signal.SIGINT,)):
        yield


@contextmanager
def stopping_at_once() -> Iterator[None]:
    """Raise :class:`StoppedError` in the block as soon as :func:`stop_signals` notes a signal."""
    global _at_once
    raise_if_stopped()
    before, _at_once = _at_once, True
    try:
        yield
    finally:
        _at_once = before


def stop_requests() -> int:
    """Return how many signals :func:`stop_signals` has noted."""
    return len(_received)


def raise_if_stopped() -> None:
    """Raise :class:`StoppedError` if :func:`stop_signals` has noted a signal."""
    if _received:
        raise StoppedError(128 + _received[0])


@contextmanager
def uninterrupted() -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Delay Ctrl-C until the block has finished.

    Python handles signals in the main thread only, so in other threads there is nothing to delay.

    Yields
    ------
    callable
        Returns a context manager, in whose block Ctrl-C is raised as if there were no delay: for
        context managers whose beginning and end must be whole, and what they enclose need not.

    Examples
    --------
    >>> try:
    ...     with uninterrupted():
    ...         signal.raise_signal(signal.SIGINT)
    ...         print("through")
    ... except KeyboardInterrupt:
    ...     print("interrupted")
    through
    interrupted
    """
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler):
        yield nullcontext
        return
    waiting: list[tuple[Any, ...]] = []
    is_open = False

    def receive(*call: Any) -> None:
        nonlocal is_open
        if not is_open:
            waiting.append(call)
            return
        # Closed first: what an exception unwinds is not stopped by the next Ctrl-C.
        is_open = False
        handler(*call)
        is_open = True

    @contextmanager
    def interruptible() -> Iterator[None]:
        nonlocal is_open
        if waiting:
            handler(*waiting.pop())
        is_open = True
        try:
            yield
        finally:
            is_open = False

    try:
        with _handled(receive, (signal.SIGINT,)):
            yield interruptible
    finally:
        # Also where the block fails otherwise: who catches that is to hear of both.
        if waiting:
            handler(*waiting[0])


def _note(number: int, frame: Any) -> None:
    _received.append(number)
    if _at_once:
        raise StoppedError(128 + number)


@contextmanager
def _handled(handler: Any, numbers: tuple[signal.Signals, ...] = STOP_SIGNALS) -> Iterator[None]:
    """Handle signals in the block, of the main thread; other threads are never interrupted."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in numbers}
    heeded = [number for number, each in before.items() if each is not signal.SIG_IGN]
    try:
        for number in heeded:
            signal.signal(number, handler)
        yield
    finally:
        for number in heeded:
            # None is a handler that was not set from Python, and cannot be set again.
            signal.signal(number, before[number] or signal.SIG_DFL)
