"""The commands as a program of cyclopts, which reads their arguments."""

from collections.abc import Iterable

from cyclopts import App

import steppe
from steppe._shared.console import add_command, make_app
from steppe.cli.commands import COMMANDS


def load_commands(names: Iterable[str]) -> App:
    """Import the named commands, and put them into one program."""
    app = make_app("steppe", steppe.__version__)
    for name in names:
        add_command(app, COMMANDS[name].load(), name)
    app.register_install_completion_command()
    return app
