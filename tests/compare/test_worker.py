"""Workers come, go and are killed; the study ends as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState
from postgres import postgres
from storages import Open, away, opened
from typer.testing import CliRunner

from steppe.cli import app
from steppe.compare import checkpoint
from steppe.compare import storage as storage_module
from steppe.compare import worker as worker_module
from steppe.compare.ledger import Ledger, record, recorded
from steppe.compare.presets import USUAL
from steppe.compare.results import StudyResults, outcome_to_dict
from steppe.compare.run import Place
from steppe.compare.storage import open_storage
from steppe.compare.study import Options, Study, plan
from steppe.compare.worker import work

__all__ = ["opened", "postgres"]

EPOCHS = 15
PATIENCE_S = 240

Key = tuple[str, str, int]
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def study() -> Study:
    options = Options(
        optimizers=["adamw", "sgd-momentum"], samples=256, epochs=EPOCHS, budget=2, seeds=2
    )
    return plan("digits", options, USUAL, Place(Path()))


@pytest.fixture(scope="module")
def undisturbed(study: Study, tmp_path_factory: pytest.TempPathFactory) -> StudyResults:
    """Run the study here, from beginning to end."""
    out = tmp_path_factory.mktemp("undisturbed")
    storage = open_storage(str(out), create=True)
    assert work(storage, study, Place(out)) == 8
    return Ledger(storage, study, plan=False).results()


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Name a storage that nothing is in yet."""
    if request.param == "sqlite":
        return str(tmp_path / "storage")
    return request.getfixturevalue("postgres").database()


@pytest.fixture
def ledger(where: str, study: Study, opened: Open) -> Ledger:
    """Plan the study in a storage."""
    storage = opened(where, create=True, heartbeat=1)
    record(storage, study)
    return Ledger(storage, study)


@pytest.fixture
def start(where: str, tmp_path: Path) -> Iterator[Start]:
    """Start processes that work at the study, and let none outlive the test."""
    with ExitStack() as team:

        def begin(*launcher: str) -> "subprocess.Popen[str]":
            options = ["--storage", where, "--heartbeat", "1", "--out", str(tmp_path / "out")]
            process = subprocess.Popen(
                [sys.executable, *launcher, "-m", "steppe", "worker", *options],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            team.enter_context(process)
            team.callback(process.kill)
            return process

        yield begin


def numbers(results: StudyResults) -> dict[Key, str]:
    """Give all that a trial has come to, in every digit, but for what it took."""
    found: dict[Key, str] = {}
    for trial in results.trials:
        assert trial.outcome is not None, trial.error
        content = outcome_to_dict(trial.outcome)
        del content["costs"]
        for epoch in content["curve"]:
            del epoch["seconds"]
        key = (trial.optimizer, trial.phase, trial.number)
        assert key not in found
        found[key] = json.dumps([trial.seed, dict(trial.settings), content])
    return found


def trials(ledger: Ledger) -> list[FrozenTrial]:
    return [trial for part in ledger._parts.values() for trial in part.get_trials()]


def amid(ledger: Ledger, worker: "subprocess.Popen[str]") -> int:
    """Wait until a trial is being trained and has come through two epochs."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        assert worker.poll() is None, worker.communicate()
        for trial in trials(ledger):
            if trial.state == TrialState.RUNNING and len(trial.intermediate_values) >= 2:
                return trial._trial_id
        time.sleep(0.01)
    raise TimeoutError("no trial was trained")


def caught(ledger: Ledger, start: Start, how: signal.Signals, end: TrialState) -> FrozenTrial:
    """End a lonely worker in the middle of a trial; if it has just ended that, do so again."""
    while True:
        worker = start()
        trial = amid(ledger, worker)
        worker.send_signal(how)
        worker.communicate(timeout=PATIENCE_S)
        assert worker.returncode == (-how if how == signal.SIGKILL else 128 + how)
        found: FrozenTrial = ledger.storage.get_trial(trial)
        if found.state == end:
            return found


def ended(worker: "subprocess.Popen[str]") -> str:
    """Wait for the end of the study; return what the worker has said."""
    said, errors = worker.communicate(timeout=PATIENCE_S)
    assert worker.returncode == 0, errors
    return said


def again(ledger: Ledger, lost: FrozenTrial) -> FrozenTrial:
    """Find the trial that was run in place of a lost one."""
    study = next(part for part in ledger._parts.values() if lost in part.get_trials())
    (found,) = (
        trial
        for trial in study.get_trials()
        if trial.user_attrs["number"] == lost.user_attrs["number"] and trial != lost
    )
    return found


def test_killed_workers_cost_nothing(
    ledger: Ledger, start: Start, undisturbed: StudyResults, tmp_path: Path
) -> None:
    killed = caught(ledger, start, signal.SIGKILL, TrialState.RUNNING)
    (unfinished,) = (tmp_path / "out" / "unfinished").glob("*.pt")
    kept = len(checkpoint.read(unfinished, "cpu")["curve"])
    assert kept >= 2

    # Two others come later, and one of them is killed as well.
    second, last = start(), start()
    amid(ledger, second)
    second.kill()
    ended(last)

    assert ledger.results().complete
    assert numbers(ledger.results()) == numbers(undisturbed)
    lost = ledger.storage.get_trial(killed._trial_id)
    assert lost.state == TrialState.FAIL
    assert "outcome" not in lost.user_attrs
    # What had been trained was not trained again.
    assert list(again(ledger, lost).intermediate_values) == list(range(kept, EPOCHS))
    states = [trial.state for trial in trials(ledger)]
    assert states.count(TrialState.COMPLETE) == ledger.trials() == 8
    assert not list((tmp_path / "out" / "unfinished").iterdir())


def test_a_worker_that_is_asked_to_end_gives_its_trial_back(
    ledger: Ledger, start: Start, study: Study, undisturbed: StudyResults, tmp_path: Path
) -> None:
    given_back = caught(ledger, start, signal.SIGTERM, TrialState.FAIL)
    assert given_back.user_attrs["released"]
    # At once, and not after six signs of life that did not come.
    waiting = again(ledger, given_back)
    assert waiting.state == TrialState.WAITING
    done = work(ledger.storage, study, Place(tmp_path / "out"))
    assert done == 8 - sum(trial.state == TrialState.COMPLETE for trial in [waiting])
    assert numbers(ledger.results()) == numbers(undisturbed)
    resumed = list(again(ledger, given_back).intermediate_values)
    assert resumed == list(range(resumed[0], EPOCHS))
    assert resumed[0] >= 2
