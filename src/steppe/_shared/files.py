"""Write files atomically: readers find the whole new file, the old one, or none.

Checkpoints, results, pictures, pages and compiled kernels are written so: a run may end at any
time, and several processes may write the same file.
"""

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import IO


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8 by :func:`write_whole`."""

    def write(file: IO[bytes]) -> None:
        file.write(text.encode())

    write_whole(path, write)


def write_whole(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    """Write a file under a temporary name beside it, then rename it.

    If writing fails or the process is killed, an old file stays as it was. Missing directories are
    made.

    Parameters
    ----------
    path : Path
        The file.
    write : callable
        Called with the open binary file to write into.

    Raises
    ------
    OSError
        The file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not one of tempfile's files, which only their owner may read, also after the renaming.
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        with temporary.open("xb") as file:
            write(file)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
