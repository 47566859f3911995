"""Where the commands write, and how they end."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer
from rich.console import Console

from steppe._shared.plurals import first_line

FAILED = 1
USAGE = 2
INTERRUPTED = 130  # the shell's convention: 128 + SIGINT

_WIDTH = 100

_EXTRA = "'steppe[compare]'"

# What brings a package that is no part of the command's own extra.
_REMEDIES = {
    "torchvision": "'steppe[vision]'",
    "timm": "'steppe[vision]'",
    "transformers": "'steppe[language]'",
    "peft": "'steppe[language]'",
    "gguf": "'steppe[language]'",
    "psycopg": "'steppe[postgresql]'",
    "tensorboard": "tensorboard",
    "mlflow": "mlflow",
    "wandb": "wandb",
}


def make_console() -> Console:
    """Make a console; where the width is not known, one that fits the tables."""
    console = Console()
    return console if console.is_terminal else Console(width=_WIDTH)


def fail(message: str, status: int = USAGE) -> NoReturn:
    """Say in one line why the command cannot go on, and end it."""
    typer.echo(f"steppe: {message}", err=True)
    raise typer.Exit(status)


@contextmanager
def refusals() -> Iterator[None]:
    """End the command with one line for what its user can put right."""
    try:
        yield
    except ModuleNotFoundError as missing:
        package = (missing.name or str(missing)).partition(".")[0]
        fail(f"{package} is missing: pip install {_REMEDIES.get(package, _EXTRA)}")
    except ImportError as broken:
        fail(first_line(broken))
    except (ValueError, OSError) as error:
        fail(str(error))
