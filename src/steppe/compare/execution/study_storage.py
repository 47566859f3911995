"""Where studies are kept: an Optuna storage, in a file by default, on PostgreSQL by URL."""

import sqlite3
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

from steppe._shared.credentials import scrubbed, shown
from steppe._shared.messages import first_line
from steppe._shared.quiet_imports import quiet_imports
from steppe.compare.execution.sqlite_copies import copy_database
from steppe.compare.execution.storage_names import parse_storage

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import RDBStorage
    from sqlalchemy.engine import URL

#: Seconds between two signs of life of a worker, and how many may fail to come before the trial it
#: was at is given to another.
HEARTBEAT = 10
MISSED = 6

#: Environment variable that tells workers the storage. Every user of a machine can read command
#: lines, and a storage's URL may hold a password.
STORAGE_VARIABLE = "STEPPE_STORAGE"

_TIMEOUT_S = 60  # how long to wait for another process that has the file locked
_CONNECT_S = 10  # how long a server may take to answer
_PATIENCE_S = 60  # how long a storage may be away before a worker ends
_PAUSE_S = 1.0
_COLLISIONS = 2

_T = TypeVar("_T")


def open_storage(where: str, *, heartbeat: int = HEARTBEAT, create: bool = False) -> "RDBStorage":
    """Open a storage.

    Parameters
    ----------
    where : str
        As :func:`~steppe.compare.execution.storage_names.parse_storage` reads it.
    heartbeat : int
        Seconds between two signs of life of a worker.
    create : bool
        Whether to make the file, or the server's tables, if there are none.

    Raises
    ------
    ValueError
        If it cannot be opened, or is not one of Optuna's.
    FileNotFoundError
        If there is no such file, and none is to be made.
    ImportError
        If Optuna or the database's driver is not installed.
    """
    _load_optuna()
    named = parse_storage(where)
    with _refusals(where):
        if isinstance(named, Path):
            return _open_file(named, heartbeat, create=create)
        return _open_server(named, heartbeat, create=create)


def _load_optuna() -> None:
    """Import Optuna, and let it be silent."""
    with quiet_imports():
        import optuna
    optuna.logging.set_verbosity(optuna.logging.ERROR)


@contextmanager
def open_for_reading(where: str) -> Iterator["RDBStorage"]:
    """Open a storage that may be somebody else's, and write nothing into it.

    Of a file a copy is read, made as it is at this moment: SQLite may write beside what it reads.

    Parameters
    ----------
    where : str
        As :func:`~steppe.compare.execution.storage_names.parse_storage` reads it.

    Raises
    ------
    ValueError, FileNotFoundError, ImportError
        As :func:`open_storage` does.
    """
    _load_optuna()
    named = parse_storage(where)
    with TemporaryDirectory(prefix="steppe-") as directory:
        with _refusals(where):
            if isinstance(named, Path):
                _check_file(named)
                copy = copy_database(named, Path(directory), _TIMEOUT_S)
                opened = _open_file(copy, HEARTBEAT, create=False)
            else:
                opened = _open_server(named, HEARTBEAT, create=False, readonly=True)
        try:
            yield opened
        finally:
            opened.engine.dispose()


def retry_while_unreachable(attempt: Callable[[], _T]) -> _T:
    """Do what needs the storage; while it is away, or busy, try again for about a minute.

    Raises
    ------
    ConnectionError
        If it does not come back.
    """
    until = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return attempt()
        except _away() as error:
            if time.monotonic() > until:
                raise ConnectionError(
                    f"the storage cannot be reached: {first_line(_cause(error))}"
                ) from error
        time.sleep(_PAUSE_S)


@contextmanager
def ignore_unreachable() -> Iterator[None]:
    """Ignore storage errors inside the block: what it writes may be lost."""
    try:
        yield
    except _away():
        return


def fail_stale_trials(study: "Study") -> None:
    """Mark the trials as failed whose worker has not been heard of for too long."""
    from optuna.storages import fail_stale_trials

    with _experimental():
        fail_stale_trials(study)


@contextmanager
def send_heartbeats(storage: "RDBStorage", trial_id: int) -> Iterator[None]:
    """Give signs of life for a trial while it is worked at."""
    done = threading.Event()
    interval = storage.get_heartbeat_interval()

    def beat() -> None:
        while not done.wait(interval):
            # One that cannot be given is no reason to end: the next may be, in time.
            with ignore_unreachable():
                storage.record_heartbeat(trial_id)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextmanager
def _refusals(where: str) -> Iterator[None]:
    """Say in one line why a storage cannot be opened, without its password."""
    try:
        yield
    except (OSError, ImportError):
        raise
    except Exception as error:
        reason = scrubbed(first_line(_cause(error)), where)
        # Not from the error: it may quote the URL, and with it a password.
        raise ValueError(f"{shown(where)} cannot be used as a storage: {reason}") from None


def _check_file(path: Path) -> None:
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there: no study has been kept in it")
    if not path.is_file():
        raise ValueError("it is no ordinary file")


def _open_file(path: Path, heartbeat: int, *, create: bool) -> "RDBStorage":
    from sqlalchemy import URL
    from sqlalchemy.pool import NullPool

    if create:
        path.parent.mkdir(parents=True, exist_ok=True)
    if not create or path.exists():
        _check_file(path)
    options = {
        # By its path: in a URL %, ? and # mean something else, by SQLAlchemy's version; and a name
        # that begins with "file:" is a URL to SQLite.
        "creator": partial(sqlite3.connect, path.absolute(), timeout=_TIMEOUT_S),
        # A connection that is kept would be left to the garbage collector, which complains.
        "poolclass": NullPool,
    }
    url = URL.create("sqlite", database=str(path))
    storage = _opened(url, heartbeat, options, create=create)
    _serialise(storage)
    return storage


def _open_server(
    where: str, heartbeat: int, *, create: bool, readonly: bool = False
) -> "RDBStorage":
    from sqlalchemy import make_url

    url = make_url(where)
    options: dict[str, Any] = {"pool_pre_ping": True}
    if url.get_backend_name() == "postgresql":
        options["connect_args"] = {"connect_timeout": _CONNECT_S}
        options["execution_options"] = {"postgresql_readonly": readonly}
    return _opened(url, heartbeat, options, create=create)


def _opened(url: "URL", heartbeat: int, options: dict[str, Any], *, create: bool) -> "RDBStorage":
    from optuna.storages import RDBStorage

    def attempt() -> RDBStorage:
        with _experimental():
            return RDBStorage(
                # Optuna takes it for a template.
                text.replace("{", "{{").replace("}", "}}"),
                engine_kwargs=dict(options),
                heartbeat_interval=heartbeat,
                grace_period=MISSED * heartbeat,
                skip_table_creation=not create,
            )

    if not create:
        _look_for_tables(url, options)
    text = url.render_as_string(hide_password=False)
    for _ in range(_COLLISIONS if create else 0):
        # If others are making the tables at the same time, all but one fail, and find them later.
        with ignore_unreachable():
            return attempt()
        time.sleep(_PAUSE_S)
    return attempt()


def _look_for_tables(url: "URL", options: Mapping[str, Any]) -> None:
    from sqlalchemy import create_engine, inspect
    from sqlalchemy.pool import NullPool

    engine = create_engine(url, **{**options, "poolclass": NullPool})
    with engine.connect() as connection:
        if not inspect(connection).has_table("version_info"):
            raise ValueError("no study has been kept in it")


def _away() -> tuple[type[Exception], ...]:
    """List what comes of a storage that is away or busy."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    return StorageInternalError, SQLAlchemyError


def _cause(error: BaseException) -> BaseException:
    """Return the database's own words, which Optuna hides behind a guess."""
    return error if error.__cause__ is None else _cause(error.__cause__)


@contextmanager
def _experimental() -> Iterator[None]:
    """Use Optuna's heartbeats, which it calls experimental, without its saying so each time."""
    from optuna.exceptions import ExperimentalWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


def _serialise(storage: "RDBStorage") -> None:
    """Let one process at a time into a file.

    SQLite has no row locks, and Python's driver begins a transaction at its first write only: two
    workers could both read a trial as free and both take it
    (https://docs.sqlalchemy.org/en/20/dialects/sqlite.html#serializable-isolation-savepoints-transactional-ddl).
    """
    from sqlalchemy import event

    @event.listens_for(storage.engine, "connect")
    def _(connection: Any, record: Any) -> None:
        connection.isolation_level = None

    @event.listens_for(storage.engine, "begin")
    def _(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
