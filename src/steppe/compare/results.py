"""Finished runs in an SQLite file, each committed whole or not at all."""

import math
import sqlite3
from dataclasses import astuple
from pathlib import Path

from steppe.compare.curvature import Curvature
from steppe.compare.run import Epoch, Outcome, Run

FILE = "results.sqlite"

_VERSION = 2
_TIMEOUT_S = 60.0  # how long to wait for another process that has the file locked
_SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (
    id INTEGER PRIMARY KEY,
    settings TEXT NOT NULL UNIQUE,
    task TEXT NOT NULL,
    optimizer TEXT NOT NULL,
    seed INTEGER NOT NULL,
    diverged INTEGER NOT NULL,
    train_loss REAL,
    test_loss REAL,
    test_accuracy REAL,
    sharpness REAL,
    largest_eigenvalue REAL,
    trace REAL,
    preconditioned REAL,
    threshold REAL,
    step_ms REAL NOT NULL,
    state_bytes REAL NOT NULL,
    finished TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP
);
CREATE TABLE IF NOT EXISTS curves (
    run INTEGER NOT NULL REFERENCES runs (id),
    epoch INTEGER NOT NULL,
    train_loss REAL NOT NULL,
    test_loss REAL NOT NULL,
    test_accuracy REAL NOT NULL,
    PRIMARY KEY (run, epoch)
);
"""

# In the order of :class:`Curvature`.
_CURVATURE = "sharpness, largest_eigenvalue, trace, preconditioned, threshold"
_PROBES = (
    "SELECT id, settings, task, optimizer, seed, diverged, train_loss, test_loss, test_accuracy,"
    f" {_CURVATURE}, step_ms, state_bytes FROM runs LIMIT 0",
    "SELECT run, epoch, train_loss, test_loss, test_accuracy FROM curves LIMIT 0",
)


class Results:
    """The finished runs of a directory.

    A run counts as finished with the settings it had: any other setting is another run.

    Parameters
    ----------
    directory : Path
        Made if it is not there; the file in it is ``results.sqlite``.

    Raises
    ------
    ValueError
        If the file cannot be opened, is locked for a minute, is damaged, or is not one of ours.
    OSError
        If the directory cannot be made.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / FILE
        try:
            self._connection = sqlite3.connect(path, timeout=_TIMEOUT_S)
        except sqlite3.Error as error:
            raise ValueError(f"{path} cannot be opened: {error}") from error
        try:
            _prepare(self._connection)
        except (sqlite3.Error, ValueError) as error:
            self.close()
            raise ValueError(f"{path} is not usable as a results file: {error}") from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def get(self, run: Run) -> Outcome | None:
        """Look up what came of the run; None if it has not finished."""
        row = self._connection.execute(
            f"SELECT id, diverged, step_ms, state_bytes, {_CURVATURE} FROM runs WHERE settings = ?",
            (run.settings,),
        ).fetchone()
        if row is None:
            return None
        identity, diverged, step_ms, state_bytes, *curvature = row
        curve = self._connection.execute(
            "SELECT train_loss, test_loss, test_accuracy FROM curves WHERE run = ? ORDER BY epoch",
            (identity,),
        )
        return Outcome(
            curve=tuple(Epoch(*epoch) for epoch in curve),
            diverged=bool(diverged),
            # SQLite has no NaN: it comes back as NULL.
            curvature=Curvature(*(math.nan if x is None else x for x in curvature)),
            step_ms=step_ms,
            state_bytes=state_bytes,
        )

    def add(self, run: Run, outcome: Outcome) -> None:
        """Commit a finished run; one that is there already, from another process, stays."""
        final = outcome.final
        with self._connection:
            cursor = self._connection.execute(
                "INSERT OR IGNORE INTO runs (settings, task, optimizer, seed, diverged,"
                f" train_loss, test_loss, test_accuracy, {_CURVATURE}, step_ms, state_bytes)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    run.settings,
                    run.setup.task.name,
                    run.recipe.name,
                    run.seed,
                    outcome.diverged,
                    final.train_loss,
                    final.test_loss,
                    final.test_accuracy,
                    *astuple(outcome.curvature),
                    outcome.step_ms,
                    outcome.state_bytes,
                ),
            )
            if cursor.rowcount == 0:
                return
            self._connection.executemany(
                "INSERT INTO curves VALUES (?, ?, ?, ?, ?)",
                [
                    (cursor.lastrowid, number, e.train_loss, e.test_loss, e.test_accuracy)
                    for number, e in enumerate(outcome.curve, start=1)
                ],
            )


def _prepare(connection: sqlite3.Connection) -> None:
    """Make the tables in a new file; else see that the file is whole, and ours."""
    damage = connection.execute("PRAGMA quick_check").fetchone()[0]
    if damage != "ok":
        raise ValueError(f"damaged: {damage.splitlines()[0]}")
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if tables == 0 and version == 0:
        # One transaction: a kill here leaves an empty file, never half the tables.
        connection.executescript(
            f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;"
        )
    elif version != _VERSION:
        raise ValueError(f"its version is {version}, not {_VERSION}")
    for probe in _PROBES:  # another program's file may well have version 1
        connection.execute(probe)
