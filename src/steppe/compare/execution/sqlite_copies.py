"""Copies of SQLite databases, made without writing beside the original."""

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

# Of the header, the two bytes that say whether the database has a write-ahead log
# (https://www.sqlite.org/fileformat.html).
_LOG_BYTES, _LOG = slice(18, 20), b"\x02\x02"


def copy_database(path: Path, directory: Path, timeout: float) -> Path:
    """Copy a database, as it is at this moment, into a directory.

    Processes that write into it are waited for. What a killed process has left half written is
    undone in the copy only.

    Parameters
    ----------
    path : Path
        The database's file.
    directory : Path
        Where the copy is made.
    timeout : float
        Seconds to wait for a process that has it locked.

    Raises
    ------
    sqlite3.Error
        It is no database, is damaged, or stays locked.
    OSError
        It cannot be read, or the copy cannot be written.
    """
    # Logs and journals lie beside the file itself, not beside a link to it.
    path, copy = path.resolve(), directory / "copy.sqlite"
    with path.open("rb") as file:
        has_log = file.read(20)[_LOG_BYTES] == _LOG
    if has_log:
        # SQLite would write an index of it.
        return _copy_files(path, copy)
    try:
        return _backup(path, copy, timeout)
    except sqlite3.OperationalError:
        # SQLite would undo what a killed process has left half written.
        if not _journal(path, "-journal").exists():
            raise
        return _copy_files(path, copy)


def _backup(path: Path, copy: Path, timeout: float) -> Path:
    source = sqlite3.connect(f"file:{quote(os.fsencode(path))}?mode=ro", uri=True, timeout=timeout)
    with closing(source), closing(sqlite3.connect(copy)) as target:
        # Takes the lock, as backup() would wait for it for ever.
        source.execute("BEGIN")
        source.execute("SELECT count(*) FROM sqlite_master").fetchone()
        source.backup(target)
    return copy


def _copy_files(path: Path, copy: Path) -> Path:
    shutil.copyfile(path, copy)
    for ending in ("-wal", "-journal"):
        if _journal(path, ending).is_file():
            shutil.copyfile(_journal(path, ending), _journal(copy, ending))
    return copy


def _journal(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)
