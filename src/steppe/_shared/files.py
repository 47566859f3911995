"""Write files atomically: readers find the whole new file, the old one, or none.

Checkpoints, results, pictures, pages and compiled kernels are written so: a run may end at any
time, and several processes may write the same file.
"""

import os
import secrets
from collections.abc import Callable, Iterable
from itertools import combinations
from pathlib import Path
from typing import IO


def write_text(path: Path, text: str, *, follow: bool = True) -> None:
    """Write text as UTF-8 by :func:`write_whole`."""

    def write(file: IO[bytes]) -> None:
        file.write(text.encode())

    write_whole(path, write, follow=follow)


def write_whole(path: Path, write: Callable[[IO[bytes]], None], *, follow: bool = True) -> None:
    """Write a file under a temporary name beside it, then rename it.

    If writing fails or the process is killed, an old file stays as it was. Missing directories are
    made.

    Parameters
    ----------
    path : Path
        The file.
    write : callable
        Called with the open binary file to write into.
    follow : bool, default True
        A link stays a link, to the new file; and a device or a pipe, such as /dev/stdout, is
        written into, as a file in its place would take it from everybody. Otherwise the new file
        takes the place of either.

    Raises
    ------
    OSError
        The file cannot be written.
    """
    if follow:
        if path.exists() and not path.is_file() and not path.is_dir():
            with path.open("wb") as file:
                write(file)
            return
        path = Path(os.path.realpath(path))
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


def check_not_overwritten(inputs: Iterable[Path], **outputs: Path | None) -> None:
    """Refuse to write a file in the place of one that is read, or two files in one place.

    Parameters
    ----------
    inputs : iterable of Path
        Files that are read.
    outputs : Path or None
        Files that will be written, by the options that name them.

    Raises
    ------
    ValueError
        Naming the option.
    """
    read = {os.path.realpath(each) for each in inputs}
    for option, path in outputs.items():
        if path is not None and os.path.realpath(path) in read:
            raise ValueError(f"--{option} {path} would overwrite what is read: name another file")
    given = [(option, path) for option, path in outputs.items() if path is not None]
    for (option, path), (other, second) in combinations(given, 2):
        if os.path.realpath(path) == os.path.realpath(second):
            raise ValueError(f"--{option} and --{other} name one file, {path}: name two")
