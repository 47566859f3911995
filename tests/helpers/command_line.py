"""The command ``steppe`` called in this process."""

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from unittest.mock import patch

from steppe.cli import main


@dataclass(frozen=True)
class Result:
    """How a command ended, and what it printed."""

    exit_code: int
    output: str
    stderr: str


class _Copied(io.StringIO):
    """A stream whose text comes to another one too."""

    def __init__(self, other: io.StringIO) -> None:
        super().__init__()
        self._other = other

    def write(self, text: str) -> int:
        self._other.write(text)
        return super().write(text)


def run_steppe(*arguments: object, **environment: str) -> Result:
    """Run ``steppe`` with arguments."""
    return run_program(lambda: main(list(map(str, arguments))), **environment)


def run_program(program: Callable[[], None], **environment: str) -> Result:
    """Run a program that may end by SystemExit."""
    status = 0
    with _output() as (output, errors), patch.dict(os.environ, environment):
        try:
            program()
        except SystemExit as end:
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
    return Result(status, output.getvalue(), errors.getvalue())


@contextmanager
def _output() -> Iterator[tuple[io.StringIO, io.StringIO]]:
    both = io.StringIO()
    errors = _Copied(both)
    with redirect_stdout(both), redirect_stderr(errors):
        yield both, errors
