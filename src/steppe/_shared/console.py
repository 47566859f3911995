"""How the commands read their arguments, where they write, and how they end."""

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console

from steppe._shared.extras import install_command
from steppe._shared.messages import first_line

FAILED = 1
USAGE = 2
INTERRUPTED = 130  # the shell's convention: 128 + SIGINT

_WIDTH = 100

# Options that had another name before 0.2.
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
        fail(str(error).splitlines()[0])


def make_console() -> Console:
    """Make a console; where the width is not known, one that fits the tables."""
    console = Console()
    return console if console.is_terminal else Console(width=_WIDTH)


def fail(message: str, status: int = USAGE) -> NoReturn:
    """Print in one line why the command cannot go on, and end it."""
    print(f"steppe: {message}", file=sys.stderr)
    raise SystemExit(status)


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
        fail(str(error))
