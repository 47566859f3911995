"""Where studies are kept: an Optuna storage, in a file by default, on PostgreSQL by URL."""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steppe.commands.wording import first_line

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import RDBStorage

FILE = "study.sqlite"

#: Seconds between two signs of life of a worker, and how many may fail to come before the trial it
#: was at is given to another.
HEARTBEAT = 10
MISSED = 6

_TIMEOUT_S = 60  # how long to wait for another process that has the file locked


def storage_url(where: str) -> str:
    """Complete what the user names: a URL as it is, a directory's study.sqlite, or a file.

    Examples
    --------
    >>> storage_url("results/digits")
    'sqlite:///results/digits/study.sqlite'
    >>> storage_url("postgresql://me@host/studies")
    'postgresql+psycopg://me@host/studies'
    """
    if "://" in where:
        scheme, _, rest = where.partition("://")
        # SQLAlchemy's own choice for the bare name is the driver's predecessor.
        return (
            f"{'postgresql+psycopg' if scheme in ('postgresql', 'postgres') else scheme}://{rest}"
        )
    path = Path(where)
    return f"sqlite:///{path if path.suffix else path / FILE}"


def open_storage(where: str, *, heartbeat: int = HEARTBEAT, create: bool = False) -> "RDBStorage":
    """Open a storage.

    Parameters
    ----------
    where : str
        As :func:`storage_url` reads it.
    heartbeat : int
        Seconds between two signs of life of a worker.
    create : bool
        Whether to make the file if there is none.

    Raises
    ------
    ValueError
        If it cannot be opened, or is not one of Optuna's.
    FileNotFoundError
        If there is no such file, and none is to be made.
    ModuleNotFoundError
        If Optuna or the database's driver is not installed.
    """
    import optuna
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    url = storage_url(where)
    sqlite = url.startswith("sqlite")
    if sqlite:
        path = Path(url.removeprefix("sqlite:///"))
        if not create and not path.is_file():
            raise FileNotFoundError(f"{path} is not there: no study has been kept in it")
        path.parent.mkdir(parents=True, exist_ok=True)
    arguments: dict[str, Any] = {"timeout": _TIMEOUT_S} if sqlite else {}
    try:
        with _experimental():
            storage = RDBStorage(
                url,
                engine_kwargs={"connect_args": arguments, "pool_pre_ping": not sqlite},
                heartbeat_interval=heartbeat,
                grace_period=MISSED * heartbeat,
            )
    except (SQLAlchemyError, RuntimeError, ValueError) as error:
        raise ValueError(f"{where} cannot be used as a storage: {first_line(error)}") from error
    if sqlite:
        _serialise(storage)
    return storage


def revive(study: "Study") -> None:
    """Mark the trials as failed whose worker has not been heard of for too long."""
    from optuna.storages import fail_stale_trials

    with _experimental():
        fail_stale_trials(study)


@contextmanager
def alive(storage: "RDBStorage", trial_id: int) -> Iterator[None]:
    """Give signs of life for a trial while it is worked at."""
    done = threading.Event()
    interval = storage.get_heartbeat_interval()

    def beat() -> None:
        while not done.wait(interval):
            # One that cannot be given is no reason to end: the next may be, in time.
            with _tolerated():
                storage.record_heartbeat(trial_id)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextmanager
def _tolerated() -> Iterator[None]:
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (StorageInternalError, SQLAlchemyError):
        return


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

    storage.engine.dispose()  # connections made before are not like that
