"""Files of machine code, which are loaded only if they are whole and nobody else can write them.

Machine code does what it likes: a file that a power cut has left half written ends the process,
and one that somebody else has put there owns it. A file therefore begins with the digest of its
content, which begins with the digest of all that the kernel was made of, and its owner and
permissions are those of ``ssh`` for keys.
"""

import hashlib
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import IO

from steppe._shared.files import write_text, write_whole

_DIGEST_BYTES = 32
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH

_READ_FLAGS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


def kernel_directory() -> Path:
    """Return the directory that kernels are kept in, made if it is not there.

    It is ``$XDG_CACHE_HOME/steppe``, or ``~/.cache/steppe`` where that variable is unset, empty or
    not an absolute path.

    Raises
    ------
    OSError
        There is none that may be used: it cannot be made, belongs to another user than this one or
        root, or may be written by others.
    """
    path = _cache_home() / "steppe"
    # With ``sudo``, a directory that root makes among a user's files would lock the user out.
    _check_owner(next(each for each in (path, *path.parents) if os.path.lexists(each)))
    path.mkdir(mode=0o755, parents=True, exist_ok=True)
    _check_status(path, path.stat())
    return path


def _cache_home() -> Path:
    named = os.environ.get("XDG_CACHE_HOME", "")
    if Path(named).is_absolute():
        return Path(named)
    try:
        home = Path.home()
    except RuntimeError as error:
        raise FileNotFoundError(str(error)) from error
    if not (home.is_absolute() and home.is_dir()):
        raise FileNotFoundError(f"the home directory {str(home)!r} is not there")
    return home / ".cache"


def read_kernel(path: Path, made_of: bytes) -> bytes | None:
    """Return the content of a file, None if there is none that may be trusted.

    Parameters
    ----------
    path
        The file.
    made_of
        The digest that it was written with.
    """
    try:
        with open(path, "rb", opener=_open_itself) as file:
            status = os.fstat(file.fileno())
            _check_status(path, status)
            content = file.read() if stat.S_ISREG(status.st_mode) else b""
    except OSError:
        return None
    digest, content = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if digest != hashlib.sha256(content).digest() or not content.startswith(made_of):
        return None
    return content[len(made_of) :]


def _open_itself(path: str, flags: int) -> int:
    """Open a file, following no link and waiting for no pipe."""
    return os.open(path, flags | _READ_FLAGS)


def write_kernel(path: Path, made_of: bytes, content: bytes, source: str) -> None:
    """Put a file in its place at once: other processes may be doing the same.

    ``source`` is put beside it, for whoever wants to read what runs; nothing reads it back.

    Raises
    ------
    OSError
        The file cannot be written; what was there has stayed.
    """
    content = made_of + content

    def write(file: IO[bytes]) -> None:
        if os.name == "posix":
            # Where new files may be written by a group, this one would not be loaded.
            os.fchmod(file.fileno(), os.fstat(file.fileno()).st_mode & ~_OTHERS_WRITE & 0o777)
        file.write(hashlib.sha256(content).digest() + content)
        file.flush()
        # A renamed file may else be empty after a power cut.
        os.fsync(file.fileno())

    # Of what lies in the cache nothing leads elsewhere.
    write_whole(path, write, follow=False)
    with suppress(OSError):
        write_text(path.with_suffix(".py"), source, follow=False)


def _check_status(path: Path, status: os.stat_result) -> None:
    """Refuse what another user may have written, or may write."""
    _check_owner(path, status)
    if os.name == "posix" and status.st_mode & _OTHERS_WRITE:
        raise PermissionError(f"{path} may be written by other users: chmod go-w {path}")


def _check_owner(path: Path, status: os.stat_result | None = None) -> None:
    """Refuse what belongs to neither this user nor root; of a link, the link itself counts."""
    owner = (status or path.lstat()).st_uid
    if os.name == "posix" and owner not in (0, os.geteuid()):
        raise PermissionError(f"{path} belongs to another user, of the number {owner}")
