"""Files that are there whole or not at all."""

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import IO


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8, whole or not at all, see :func:`write_whole`."""

    def write(file: IO[bytes]) -> None:
        file.write(text.encode())

    write_whole(path, write)


def write_whole(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    """Write a file beside its place, then put it there: a kill leaves the old one, or none.

    Raises
    ------
    OSError
        It cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile's: those may be read by nobody else, and stay so.
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        with temporary.open("xb") as file:
            write(file)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
