"""How the commands read their arguments, where they write, and how they end."""

import inspect
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from shutil import get_terminal_size
from typing import Any, NoReturn, TextIO, cast

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console, ConsoleDimensions

from steppe._shared.credentials import without_credentials
from steppe._shared.extras import install_command
from steppe._shared.messages import first_line
from steppe._shared.printable import printable

FAILED = 1
USAGE = 2
INTERRUPTED = 130  # the shell's convention: 128 + SIGINT

_WIDTH = 100
_NARROWEST = 30

# Options that had another name once: the error for the old one says the new one.
_RENAMED = {
    "--clip": "--max-grad-norm",
    "--accumulate": "--grad-accumulation",
    "--length": "--seq-length",
    "--out": "--out-dir, or --figure of steppe profile",
}


def make_app(name: str, version: str | None = None) -> App:
    """Make a program without commands; where an option is repeated, the last one counts."""
    flags = ("--version",) if version else ()
    last_counts = Parameter(allow_repeating=True)
    return App(name=name, version=version, version_flags=flags, default_parameter=last_counts)


def add_command(app: App, function: Callable[..., Any], name: str | None = None) -> None:
    """Add a command whose help ends with the examples of its docstring.

    Parameters
    ----------
    app : App
        The program. Without a name the function is what it does.
    function : callable
        The command. Its docstring's section "Examples" stands at the end of its help.
    name : str, optional
        The command's name on the command line.
    """
    examples = (inspect.getdoc(function) or "").partition("Examples\n--------\n")[2]
    epilogue = f"Examples:\n\n{examples}" if examples else None
    if name is None:
        app.help_epilogue = epilogue
        app.default(function)
    else:
        usage = _usage(f"{app.name[0]} {name}", function)
        app.command(function, name=name, help_epilogue=epilogue, usage=usage)


def _usage(command: str, function: Callable[..., Any]) -> str:
    """Return a command's usage line; cyclopts writes [ARGS] for arguments that may be left out."""
    words = [f"Usage: {command}"]
    for parameter in inspect.signature(function).parameters.values():
        label, needed = parameter.name.upper(), parameter.default is inspect.Parameter.empty
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            words.append(f"[{label}...]")
        elif parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            words.append(label if needed else f"[{label}]")
        elif needed:
            words.append(f"--{parameter.name.replace('_', '-')} {label}")
    return " ".join([*words, "[OPTIONS]"])


def run_app(app: App, arguments: Sequence[str]) -> None:
    """Run a program with arguments; print one line about what is wrong with them.

    Raises
    ------
    SystemExit
        If the arguments are wrong, with status 2; otherwise with the command's own status.
    """
    for old in (each.partition("=")[0] for each in arguments):
        if old in _RENAMED:
            fail(f"{old} has another name now: {_RENAMED[old]}")
    try:
        app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        fail(without_credentials(str(error).splitlines()[0], arguments))


def make_console() -> Console:
    """Make a console that prints texts as they are: brackets and colons in names are no markup.

    Where the width is not known, or too small for a number beside a name, it is one that fits the
    tables. A reader that goes away stops nothing.
    """
    output = cast("TextIO", _Output(sys.stdout))
    console = _PrintingConsole(file=output, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = _WIDTH
    elif console.is_dumb_terminal or console.width < _NARROWEST:
        # Of a dumb terminal Rich takes 80 columns, whatever it has, unless it is told both numbers.
        columns, lines = get_terminal_size()
        console.size = ConsoleDimensions(max(_NARROWEST, columns), lines)
    return console


class _PrintingConsole(Console):
    """A console whose texts cannot control the terminal: names and paths may be anybody's."""

    def print(self, *objects: Any, **how: Any) -> None:
        super().print(*map(_harmless, objects), **how)

    def out(self, *objects: Any, **how: Any) -> None:
        super().out(*map(_harmless, objects), **how)


def _harmless(shown: Any) -> Any:
    return "\n".join(map(printable, shown.split("\n"))) if isinstance(shown, str) else shown


class _Output(io.TextIOBase):
    """Standard output, which may be a closed pipe, a full disk, or a terminal that has gone.

    A study goes on without it; its page has all that is printed.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self._stream, "encoding", None) or "utf-8"

    def fileno(self) -> int:
        if self._stream is None:
            raise io.UnsupportedOperation("fileno")
        return self._stream.fileno()

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def write(self, text: str) -> int:
        self._try(lambda stream: stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(lambda stream: stream.flush())

    def _try(self, action: Callable[[TextIO], object]) -> None:
        if self._stream is None:
            return
        try:
            action(self._stream)
        except OSError as error:
            self._stream = None
            # What is left in its buffer would fail again when the process ends.
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if not isinstance(error, BrokenPipeError):
                warn(f"standard output cannot be written: {error}")


def fail(message: str, status: int = USAGE, notes: Iterable[str] = ()) -> NoReturn:
    """Print in one line why the command cannot go on, below it the notes, and end it."""
    warn(message)
    with suppress(OSError):
        for note in notes:
            print(printable(note), file=sys.stderr)
    raise SystemExit(status)


def warn(message: str) -> None:
    """Print a line on standard error."""
    with suppress(OSError):
        print(f"steppe: {printable(message)}", file=sys.stderr)


@contextmanager
def refusals() -> Iterator[None]:
    """End the command with one line, not a traceback, for errors that its user can put right.

    Those are missing packages, wrong values (ValueError) and files (OSError).
    """
    try:
        yield
    except ModuleNotFoundError as missing:
        package = (missing.name or str(missing)).partition(".")[0]
        fail(f"{package} is missing: {install_command(package)}")
    except ImportError as broken:
        fail(first_line(broken))
    except (ValueError, OSError) as error:
        fail(str(error), notes=getattr(error, "__notes__", ()))
