"""Show an error in a user's task as a short trace of their own lines."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import steppe
from steppe._shared.messages import first_line

_STEPPE = str(Path(steppe.__file__).parent)
# Of a recursion only the last lines say something.
_MOST_LINES = 5


class TaskError(ValueError):
    """Something is wrong in a task: the message names it and what would be right."""


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn an error inside of the block into a :class:`TaskError` with the user's own lines.

    Parameters
    ----------
    what : str
        What cannot be done.

    Raises
    ------
    TaskError
        With the error's first line; its notes are the lines of the user's code that led to it.
    """
    try:
        yield
    except TaskError:
        raise
    except (Exception, SystemExit) as error:
        raise with_own_lines(TaskError(f"{what}: {first_line(error)}"), error) from error


def with_own_lines(found: ValueError, error: BaseException) -> ValueError:
    """Return an error with the user's own lines that led to another one as its notes."""
    for line in own_lines(error):
        found.add_note(line)
    return found


def own_lines(error: BaseException) -> list[str]:
    """Return the lines of an error's trace that are neither steppe's nor an installed package's.

    Of a syntax error it is the line that cannot be read.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return [_shown(error.filename, error.lineno or 0, "", error.text or "")]
    frames = [each for each in traceback.extract_tb(error.__traceback__) if _is_own(each.filename)]
    return [
        _shown(each.filename, each.lineno or 0, each.name, each.line or "")
        for each in frames[-_MOST_LINES:]
    ]


def _is_own(filename: str) -> bool:
    installed = filename.startswith((_STEPPE, "<frozen", "<string>")) or "site-packages" in filename
    return not installed and "/lib/python3" not in filename


def _shown(filename: str, line: int, function: str, text: str) -> str:
    inside = f" in {function}" if function and not function.startswith("<") else ""
    return f"  {filename}:{line}{inside}: {text.strip()}"
