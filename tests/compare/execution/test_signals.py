"""A signal never becomes a trial's failure, wherever it comes."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from helpers.study_storages import Open, opened
from steppe._shared.interrupts import STOP_SIGNALS, StoppedError
from steppe.compare.execution import worker
from steppe.compare.execution.optuna_trials import OptunaTrials
from steppe.compare.execution.study_registry import save_study
from steppe.compare.execution.trial_queue import TrialQueue
from steppe.compare.execution.worker import work
from steppe.compare.planning.presets import USUAL
from steppe.compare.planning.study import PlannedStudy, StudyOptions, plan_study
from steppe.compare.training import train as train_module
from steppe.compare.training.run import RunContext

pytestmark = pytest.mark.thorough

__all__ = ["opened"]

# Nothing is searched: three trials of the pool are all.
FIXED = {"lr": 1e-3, "weight_decay": 0.0, "budget": 1, "trials": 3}
SIZES = {"samples": 64, "batch_size": 16, "epochs": 2, **FIXED}
TRIALS = 3

# What a worker imports from when it takes its first trial until it has ended all.
IMPORTS = """
import sys
from steppe.cli import main
from steppe.compare.execution import worker

train = worker._train_trial
new = set()

def watched(*arguments):
    before = set(sys.modules)
    result = train(*arguments)
    new.update(set(sys.modules) - before)
    return result

worker._train_trial = watched
main(["worker", "--storage", sys.argv[1], "--out-dir", sys.argv[1]])
print("imported:", *sorted(new))
"""


@pytest.fixture(scope="module")
def study() -> PlannedStudy:
    return plan_study(
        "digits", StudyOptions(optimizers=["adamw"], **SIZES), USUAL, RunContext(Path())
    )


@pytest.fixture
def queue(study: PlannedStudy, opened: Open, tmp_path: Path) -> TrialQueue:
    storage = opened(str(tmp_path), create=True)
    save_study(storage, study)
    return TrialQueue(storage, study)


def stopped(queue: TrialQueue, number: int = signal.SIGTERM) -> None:
    """Work until a signal ends it, which it has to."""
    context = RunContext(Path(queue.storage.engine.url.database).parent)
    before = [signal.getsignal(each) for each in STOP_SIGNALS]
    with pytest.raises(StoppedError) as end:
        work(queue.storage, queue.study, context)
    assert end.value.code == 128 + number
    assert [signal.getsignal(each) for each in STOP_SIGNALS] == before


def assert_given_back(queue: TrialQueue) -> None:
    """Assert that the study can go on at once, and has no failure."""
    assert queue.results().trials == ()
    taken = queue.take()
    assert taken is not None
    assert (taken.phase, taken.number) == ("pool", 0)


def during(
    monkeypatch: pytest.MonkeyPatch, what: Any, name: str, happen: Callable[[], None]
) -> None:
    """Let something happen before each call of a function."""
    original = getattr(what, name)

    def call(*arguments: Any, **options: Any) -> Any:
        happen()
        return original(*arguments, **options)

    monkeypatch.setattr(what, name, call)


@pytest.mark.parametrize("number", STOP_SIGNALS, ids=lambda number: number.name)
def test_a_signal_in_training_gives_the_trial_back(
    number: signal.Signals, queue: TrialQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    during(monkeypatch, train_module.OptimizerStep, "take", lambda: signal.raise_signal(number))
    monkeypatch.setattr(worker, "_prepare", lambda *_: None)
    stopped(queue, number)
    assert_given_back(queue)


@pytest.mark.parametrize("error", [AttributeError, ImportError, RuntimeError, OSError, SystemExit])
def test_what_fails_after_a_signal_is_given_back(
    error: type[BaseException], queue: TrialQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a module that was imported by half, or a process that the same signal has ended."""

    def fail(*_: Any, **rest: Any) -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            raise error("half a module")

    monkeypatch.setattr(worker, "train", fail)
    stopped(queue)
    assert_given_back(queue)


def test_an_outcome_after_a_signal_that_was_swallowed_is_not_kept(
    queue: TrialQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    def swallow() -> None:
        with suppress(BaseException):
            signal.raise_signal(signal.SIGINT)

    during(monkeypatch, worker, "train", swallow)
    saved: list[Any] = []
    monkeypatch.setattr(train_module.checkpoint, "write", lambda *content: saved.append(content))
    stopped(queue, signal.SIGINT)
    assert_given_back(queue)
    # Nor is an epoch, from which another worker would go on.
    assert not saved


def test_a_signal_while_a_trial_is_taken_gives_it_back(
    queue: TrialQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    during(monkeypatch, OptunaTrials, "claim", lambda: signal.raise_signal(signal.SIGHUP))
    stopped(queue, signal.SIGHUP)
    monkeypatch.undo()
    assert_given_back(queue)


def test_a_signal_while_a_result_is_written_waits_for_it(
    queue: TrialQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    during(monkeypatch, queue.storage, "set_trial_user_attr", lambda: signal.raise_signal(15))
    stopped(queue)
    (trial,) = queue.results().trials
    assert trial.outcome is not None


def test_more_signals_do_not_disturb_the_giving_back(
    queue: TrialQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    during(monkeypatch, train_module.OptimizerStep, "take", lambda: signal.raise_signal(2))
    during(monkeypatch, TrialQueue, "release", lambda: signal.raise_signal(15))
    during(monkeypatch, OptunaTrials, "end", lambda: signal.raise_signal(1))
    monkeypatch.setattr(worker, "_prepare", lambda *_: None)
    stopped(queue, signal.SIGINT)
    monkeypatch.undo()
    assert_given_back(queue)


def test_a_signal_that_is_ignored_stays_ignored(queue: TrialQueue, tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        context = RunContext(tmp_path)
        stop = lambda *_: signal.raise_signal(signal.SIGHUP)  # noqa: E731
        assert work(queue.storage, queue.study, context, stop) == TRIALS
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert queue.results().complete


def test_a_killed_loader_is_not_the_trials_failure(
    queue: TrialQueue, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: Any, **rest: Any) -> None:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")

    monkeypatch.setattr(worker, "train", fail)
    with pytest.raises(ConnectionError, match="killed by signal"):
        work(queue.storage, queue.study, RunContext(tmp_path))
    assert_given_back(queue)


def test_everything_is_imported_before_a_trial_is_taken(queue: TrialQueue, tmp_path: Path) -> None:
    command = [sys.executable, "-c", IMPORTS, str(tmp_path)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].strip() == "imported:"
    assert queue.results().complete
