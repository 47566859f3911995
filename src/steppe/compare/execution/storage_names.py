"""How users name storages: a database's URL, a file, or a directory."""

import re
from pathlib import Path

FILE = "study.sqlite"
_SUFFIXES = (".sqlite", ".sqlite3", ".db")

# Easily typed for a URL, and then the name of a directory with a password in it.
_BROKEN_URL = re.compile(
    r"(postgres(ql)?|cockroachdb|mysql|mariadb|oracle|mssql|rediss?|mongodb|sqlite)(\+\w+)?:"
    r"|(.*\s)?(host(addr)?|user|dbname|(ssl)?password|passfile|service)\s*=",
    re.IGNORECASE,
)


def parse_storage(where: str) -> Path | str:
    """Return the file that a storage is in, or the URL of its server.

    A directory stands for its study.sqlite. What is not there yet is a file if its name ends as
    those of databases do.

    Raises
    ------
    ValueError
        If it is neither a URL nor a path, or a database in memory.

    Examples
    --------
    >>> str(parse_storage("results/digits"))
    'results/digits/study.sqlite'
    >>> parse_storage("postgres://me@host/studies")
    'postgresql+psycopg://me@host/studies'
    """
    if "://" in where:
        return _parse_url(where)
    if "\0" in where:
        raise ValueError("storage must be a URL, a file or a directory, got a name with a zero")
    path = Path(where)
    if _BROKEN_URL.match(where) and not path.exists():
        raise ValueError("storage must be a URL (postgresql://host/db), a file or a directory")
    file = path.suffix in _SUFFIXES and not path.is_dir()
    return path if file or (path.exists() and not path.is_dir()) else path / FILE


def _parse_url(where: str) -> Path | str:
    scheme, _, rest = where.partition("://")
    scheme = scheme.strip().lower()
    if scheme.partition("+")[0] != "sqlite":
        # SQLAlchemy's own choice for the bare name is the driver's predecessor.
        return (
            f"{'postgresql+psycopg' if scheme in ('postgresql', 'postgres') else scheme}://{rest}"
        )
    if rest.removeprefix("/") in ("", ":memory:"):
        raise ValueError("a database in memory is gone with its process: name a file")
    if not rest.startswith("/") or any(each in rest for each in "%?#"):
        raise ValueError(
            "a URL of SQLite must be sqlite:///PATH without %, ? or #: give the file's path alone"
        )
    return Path(rest[1:])


def is_json(where: str) -> bool:
    """Return whether a file of ``steppe report --json`` is named, and no storage."""
    is_named_so = where.lower().endswith((".json", ".gz"))
    return "://" not in where and is_named_so and not Path(where).is_dir()


def study_file(where: str) -> Path | None:
    """Return the file that a study is read from; None where it is on a server.

    Examples
    --------
    >>> str(study_file("results/digits")), str(study_file("digits.json"))
    ('results/digits/study.sqlite', 'digits.json')
    """
    found = Path(where) if is_json(where) else parse_storage(where)
    return found if isinstance(found, Path) else None
