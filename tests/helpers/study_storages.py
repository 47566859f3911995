"""Storages of studies: opened, closed in the end, and with a past of their own."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from sqlalchemy import text

from steppe.compare.execution.study_storage import open_storage

Open = Callable[..., Any]


@pytest.fixture
def opened() -> Iterator[Open]:
    """Open storages as :func:`steppe.compare.execution.study_storage.open_storage` does."""
    with ExitStack() as closing:

        def open_it(where: str, **options: Any) -> Any:
            storage = open_storage(where, **options)
            closing.callback(storage.engine.dispose)
            return storage

        yield open_it


@contextmanager
def away(storage: Any, request: pytest.FixtureRequest) -> Iterator[None]:
    """Stop a storage's server, or lock its file."""
    if storage.engine.name == "postgresql":
        with request.getfixturevalue("postgres").away():
            yield
        return
    lock = sqlite3.connect(storage.engine.url.database, isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    yield
    lock.close()


def forget(storage: Any, *trials: int) -> None:
    """Let the last sign of life of trials be one of yesteryear."""
    with storage.engine.begin() as connection:
        for trial in trials:
            connection.execute(
                text("UPDATE trial_heartbeats SET heartbeat = '2025-01-01' WHERE trial_id = :id"),
                {"id": trial},
            )
