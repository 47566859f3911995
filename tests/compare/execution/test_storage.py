"""A storage is opened or refused, and gives each trial to one process, wherever it is."""

import socket
import sqlite3
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState, create_trial
from sqlalchemy.exc import SQLAlchemyError

from helpers.concurrent_processes import claim, open_new, together
from helpers.postgresql_server import KINDS, Server, postgres
from helpers.study_storages import Open, away, forget, opened
from steppe.compare.execution import study_storage as module
from steppe.compare.execution.storage_names import parse_storage
from steppe.compare.execution.study_storage import (
    fail_stale_trials,
    ignore_unreachable,
    open_for_reading,
    open_storage,
    retry_while_unreachable,
    send_heartbeats,
)

pytestmark = pytest.mark.thorough

__all__ = ["opened", "postgres"]


@pytest.fixture(params=KINDS)
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Name a storage that nothing is in yet."""
    if request.param == "sqlite":
        return str(tmp_path / "new")
    return request.getfixturevalue("postgres").database()


@pytest.fixture
def study(where: str, opened: Open) -> optuna.Study:
    """Keep a study of six waiting trials."""
    made = optuna.create_study(storage=opened(where, create=True), study_name="study")
    for number in range(6):
        made.add_trial(create_trial(state=TrialState.WAITING, user_attrs={"number": number}))
    return made


@pytest.mark.parametrize(
    ("named", "found"),
    [
        ("out", Path("out/study.sqlite")),
        ("/data/run.v2", Path("/data/run.v2/study.sqlite")),
        ("new.db", Path("new.db")),
        ("there", Path("there")),
        ("folder.db", Path("folder.db/study.sqlite")),
        ("sqlite:///any.file", Path("any.file")),
        ("sqlite:////any/file", Path("/any/file")),
        ("postgres://me:secret@host:5433/db?sslmode=require", "postgresql+psycopg://me:secret@"
         "host:5433/db?sslmode=require"),
        ("POSTGRESQL://host/db", "postgresql+psycopg://host/db"),
        ("postgresql+psycopg2://host/db", "postgresql+psycopg2://host/db"),
        ("mysql+pymysql://host/db", "mysql+pymysql://host/db"),
        ("my%20study", Path("my%20study/study.sqlite")),
        ("q?x=1#y", Path("q?x=1#y/study.sqlite")),
        ("--{a} 'b' \"c\" é~", Path("--{a} 'b' \"c\" é~/study.sqlite")),
        ("~", Path("~/study.sqlite")),
    ],
)  # fmt: skip
def test_what_is_named_is_a_url_a_file_or_a_directory(
    named: str, found: Path | str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there").touch()
    Path("folder.db").mkdir()
    assert parse_storage(named) == found


def files(directory: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in directory.rglob("*")}


@pytest.mark.parametrize(
    ("named", "error", "message"),
    [
        ("empty", FileNotFoundError, "empty/study.sqlite is not there: no study"),
        ("missing.sqlite", FileNotFoundError, "missing.sqlite is not there: no study"),
        ("letter.txt", ValueError, "letter.txt cannot be used as a storage: .*not a database"),
        ("other.db", ValueError, "other.db cannot be used as a storage: no study has been kept"),
        ("sqlite://", ValueError, "in memory"),
        ("sqlite:///:memory:", ValueError, "in memory"),
        ("abacus://host/db", ValueError, "abacus://… cannot be used as a storage: "),
        ("postgresql://host:port/db", ValueError, "cannot be used as a storage: "),
        ("postgresql://me@127.0.0.1:1/db", ValueError, "cannot be used as a storage: .*refused"),
        ("postgresql://me@/db?host=/nowhere", ValueError, "cannot be used as a storage: "),
    ],
)
def test_what_is_no_storage_is_refused_and_left_alone(
    named: str,
    error: type[Exception],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("letter.txt").write_text("Dear reader, this is not a database, however long it is.")
    other = sqlite3.connect("other.db")
    other.execute("CREATE TABLE birds (name TEXT)")
    other.close()
    before = files(tmp_path)
    with pytest.raises(error, match=message) as refusal:
        open_storage(named)
    assert "\n" not in str(refusal.value)
    assert files(tmp_path) == before


def test_an_empty_database_stays_empty_where_a_study_is_looked_for(postgres: Server) -> None:
    where = postgres.database()
    for _ in range(2):
        with pytest.raises(ValueError, match="no study has been kept in it") as refusal:
            open_storage(where)
        assert "\n" not in str(refusal.value)


def test_a_storage_of_an_older_optuna_is_refused_and_left_alone(tmp_path: Path) -> None:
    where = tmp_path / "study.sqlite"
    open_storage(str(where), create=True)
    connection = sqlite3.connect(where)
    connection.execute("DROP TABLE trial_heartbeats")
    connection.execute("UPDATE alembic_version SET version_num = 'v2.6.0.a'")
    connection.commit()
    connection.close()
    before = files(tmp_path)
    with pytest.raises(ValueError, match=r"no longer compatible .* optuna storage upgrade"):
        open_storage(str(where))
    assert files(tmp_path) == before


def test_a_name_is_taken_as_it_is(tmp_path: Path) -> None:
    where = str(tmp_path / "{a} 100%")
    optuna.create_study(storage=open_storage(where, create=True), study_name="kept")
    assert [each.study_name for each in open_storage(where).get_all_studies()] == ["kept"]
    assert (tmp_path / "{a} 100%" / "study.sqlite").is_file()


def test_who_reads_cannot_write(where: str, study: optuna.Study) -> None:
    with open_for_reading(where) as storage:
        (read,) = storage.get_all_studies()
        assert read.study_name == study.study_name
        # SQLite's is a copy, and PostgreSQL refuses.
        with suppress(StorageInternalError, SQLAlchemyError):
            storage.delete_study(read._study_id)
    assert [trial.number for trial in study.get_trials()] == list(range(6))


def test_a_server_that_never_answers_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    # psycopg waits for two seconds at least.
    monkeypatch.setattr(module, "_CONNECT_S", 2)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        where = f"postgresql://me@127.0.0.1:{mute.getsockname()[1]}/db"
        with pytest.raises(ValueError, match="timeout expired"):
            open_storage(where)


def test_many_may_make_the_same_storage(where: str) -> None:
    assert together(open_new, 5, where) == [0] * 5


def test_each_trial_is_claimed_once(where: str, study: optuna.Study) -> None:
    trials = [trial._trial_id for trial in study.trials]
    claimed = together(claim, 5, where, trials)
    assert sorted(chain.from_iterable(claimed)) == trials
    assert {trial.state for trial in study.trials} == {TrialState.RUNNING}


def test_who_gives_signs_of_life_keeps_the_trial(
    where: str,
    study: optuna.Study,
    opened: Open,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    storage = opened(where)
    trials = [trial._trial_id for trial in study.trials[:3]]
    for trial in trials:
        storage.record_heartbeat(trial)
        storage.set_trial_state_values(trial, TrialState.RUNNING)
    forget(storage, *trials[:2])
    given = watched(storage, monkeypatch)
    with send_heartbeats(storage, trials[0]):
        next(given)
        fail_stale_trials(study)
    states = [trial.state for trial in study.trials]
    assert states[:3] == [TrialState.RUNNING, TrialState.FAIL, TrialState.RUNNING]
    assert states[3:] == [TrialState.WAITING] * 3


def test_a_sign_of_life_that_cannot_be_given_is_followed_by_the_next(
    where: str,
    study: optuna.Study,
    opened: Open,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    storage = opened(where)
    trial = study.trials[0]._trial_id
    storage.record_heartbeat(trial)
    storage.set_trial_state_values(trial, TrialState.RUNNING)
    forget(storage, trial)
    given = watched(storage, monkeypatch, fail=2)
    with send_heartbeats(storage, trial):
        next(given)
    fail_stale_trials(study)
    assert study.trials[0].state == TrialState.RUNNING


def watched(storage: Any, monkeypatch: pytest.MonkeyPatch, fail: int = 0) -> Iterator[None]:
    """Beat without pause, the first few times in vain; wait for one that has arrived."""
    from threading import Event

    tries, arrived = iter(range(10**9)), Event()
    record = storage.record_heartbeat

    def beat(trial: int) -> None:
        if next(tries) < fail:
            raise StorageInternalError("away")
        record(trial)
        arrived.set()

    monkeypatch.setattr(storage, "get_heartbeat_interval", lambda: 0.01)
    monkeypatch.setattr(storage, "record_heartbeat", beat)

    def wait() -> Iterator[None]:
        assert arrived.wait(60)
        yield

    return wait()


def test_what_must_be_written_waits_for_the_storage(
    where: str,
    study: optuna.Study,
    opened: Open,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    monkeypatch.setattr(module, "_TIMEOUT_S", 0)
    trial, storage = study.trials[0]._trial_id, opened(where)
    pauses = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            outage.close()

    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=pause, monotonic=time.monotonic))
    with ExitStack() as outage:
        outage.enter_context(away(study._storage._backend, request))
        retry_while_unreachable(lambda: storage.set_trial_state_values(trial, TrialState.RUNNING))
    assert len(pauses) == 2
    assert study.trials[0].state == TrialState.RUNNING


def test_a_storage_that_stays_away_is_said_so_in_one_line(
    where: str,
    study: optuna.Study,
    opened: Open,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    monkeypatch.setattr(module, "_TIMEOUT_S", 0)
    monkeypatch.setattr(module, "_PATIENCE_S", -1)
    trial, storage = study.trials[0]._trial_id, opened(where)

    def take() -> None:
        storage.set_trial_state_values(trial, TrialState.RUNNING)

    with away(study._storage._backend, request):
        with pytest.raises(ConnectionError, match=r"the storage cannot be reached: .+") as refusal:
            retry_while_unreachable(take)
        with ignore_unreachable():
            take()
    assert "\n" not in str(refusal.value)
    assert study.trials[0].state == TrialState.WAITING


def test_an_error_that_is_not_the_storages_is_not_waited_for() -> None:
    with pytest.raises(ZeroDivisionError):
        retry_while_unreachable(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError), ignore_unreachable():
        1 / 0  # noqa: B018
