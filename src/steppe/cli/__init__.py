"""The command ``steppe``.

The first argument decides what is imported. ``--help``, ``--version`` and ``doctor`` need the core
install only; every other command is read by cyclopts, of the extra ``compare``, and imported when
it is called.

Why cyclopts, of the libraries that make a command line from annotations and dataclasses. It reads
the help of options from NumPy docstrings, where it stands for Python's users as well, puts options
in groups, shows defaults and choices, guesses at misspelt options, and writes completion for bash,
zsh and fish. tyro groups options by nested dataclasses only, and prints ``{None}|FLOAT`` for what
may be left out; jsonargparse needs more packages for help and completion. All three are released
every few weeks. cyclopts adds three pure-Python packages of 6 MB to rich and attrs, and 0.1 s to
the time of a command's help.
"""

import sys
from collections.abc import Sequence

from steppe import __version__
from steppe._shared.extras import install_command
from steppe._shared.names import unknown_name_message
from steppe._shared.printable import accept_all_text, printable
from steppe.cli.commands import COMMANDS, overview

__all__ = ["main"]

_COMPLETION = "--install-completion"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        Default: those of the process.

    Raises
    ------
    SystemExit
        With the command's status; with a remedy if the packages it needs are not installed.

    Examples
    --------
    >>> main(["--version"])  # doctest: +ELLIPSIS
    steppe ...
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    accept_all_text(sys.stdout, sys.stderr)
    first = arguments[0] if arguments else "--help"
    if first in ("--help", "-h"):
        print(overview())
    elif first == "--version":
        print(f"steppe {__version__}")
    elif list(arguments) in (["doctor"], ["doctor", "--warm"]):
        COMMANDS["doctor"].load()(warm="--warm" in arguments)
    elif first in COMMANDS or first == _COMPLETION:
        _run(first, arguments)
    else:
        message = unknown_name_message("command", first, COMMANDS)
        print(f"steppe: {printable(message)}", file=sys.stderr)
        raise SystemExit(2)


def _run(first: str, arguments: Sequence[str]) -> None:
    try:
        from steppe._shared.console import refusals, run_app
        from steppe._shared.interrupts import ending_at_once
        from steppe.cli.app import load_commands
    except ModuleNotFoundError as missing:
        package = (missing.name or "").partition(".")[0]
        raise SystemExit(f"steppe: {package} is missing: {install_command(package)}") from None
    with refusals(), ending_at_once():
        # A completion script knows the options of all commands.
        app = load_commands(COMMANDS if first == _COMPLETION else (first,))
    run_app(app, arguments)
