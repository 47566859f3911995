"""Workers come, go and are killed; the study ends as if nothing had happened."""

import json
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState

from helpers import warm_python
from helpers.command_line import run_steppe
from helpers.postgresql_server import KINDS, postgres
from helpers.study_storages import Open, away, opened
from helpers.training_runs import measure_little
from steppe.compare.execution import study_storage as storage_module
from steppe.compare.execution import worker as worker_module
from steppe.compare.execution.study_registry import save_study
from steppe.compare.execution.study_storage import open_storage
from steppe.compare.execution.trial_queue import TrialQueue
from steppe.compare.execution.worker import work
from steppe.compare.planning.presets import USUAL
from steppe.compare.planning.study import PlannedStudy, StudyOptions, plan_study
from steppe.compare.records.json_format import to_json
from steppe.compare.records.results import Outcome, StudyResults
from steppe.compare.training.run import RunContext

pytestmark = pytest.mark.thorough

__all__ = ["opened", "postgres"]

EPOCHS = 6
# Two pools of three; of one optimizer three at the defaults and three at recommended settings.
TRIALS = 12
PATIENCE_S = 240

Key = tuple[str, ...]
Start = Callable[..., warm_python.WarmProcess]

# ``steppe …`` with little curvature, and with a rest after every epoch: without one, all trials may
# be over between two looks at them, and there would be nobody left to end.
SLOWLY = """
import os, sys, time
from pathlib import Path
import pytest
from helpers.process_group import join
from helpers.training_runs import measure_little
from steppe.cli import main
from steppe.compare.execution import worker
from steppe.compare.training import checkpoint

worker._REPORT_S = 0.0
measure_little(pytest.MonkeyPatch(), "digits")

write = checkpoint.write

def slowly(path, content):
    write(path, content)
    time.sleep(0.05)

checkpoint.write = slowly
if "RANK" in os.environ:
    join(int(os.environ["RANK"]), Path(__file__).parent, int(os.environ["WORLD_SIZE"]))
main()
"""


@pytest.fixture(scope="module", autouse=True)
def _little_curvature() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        measure_little(patch, "digits")
        yield


@pytest.fixture(scope="module")
def study() -> PlannedStudy:
    options = StudyOptions(
        # The second has settings that are searched, hence runs of all phases.
        optimizers=["sgd-momentum", "adamw+beta1"],
        samples=128,
        epochs=EPOCHS,
        budget=1,
        trials=3,
        lr=1e-2,
        weight_decay=0.0,
    )
    return plan_study("digits", options, USUAL, RunContext(Path()))


@pytest.fixture(scope="module")
def undisturbed(study: PlannedStudy, tmp_path_factory: pytest.TempPathFactory) -> StudyResults:
    """Run the study here, from beginning to end."""
    out = tmp_path_factory.mktemp("undisturbed")
    storage = open_storage(str(out), create=True)
    assert work(storage, study, RunContext(out)) == TRIALS
    return TrialQueue(storage, study, plan=False).results()


@pytest.fixture(params=KINDS)
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Name a storage that nothing is in yet."""
    if request.param == "sqlite":
        return str(tmp_path / "storage")
    return request.getfixturevalue("postgres").database()


@pytest.fixture
def queue(where: str, study: PlannedStudy, opened: Open) -> TrialQueue:
    """Plan the study in a storage."""
    storage = opened(where, create=True, heartbeat=1)
    save_study(storage, study)
    return TrialQueue(storage, study)


@pytest.fixture
def start(where: str, tmp_path: Path) -> Iterator[Start]:
    """Start processes that work at the study, and let none outlive the test."""
    slowly = tmp_path / "slowly.py"
    slowly.write_text(SLOWLY)
    with ExitStack() as pool:

        def begin(**environment: str) -> warm_python.WarmProcess:
            command = ["worker", "--storage", where, "--heartbeat", "1"]
            command += ["--out-dir", str(tmp_path / "out")]
            process = warm_python.start(
                slowly, *command, libraries=warm_python.STUDIES, **environment
            )
            pool.callback(process.kill)
            return process

        yield begin


def launched(start: Start) -> list[warm_python.WarmProcess]:
    """Start two processes that work together, with what torchrun tells them."""
    size = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    return [start(RANK=rank, LOCAL_RANK=rank, **size) for rank in "01"]


def numbers(results: StudyResults) -> dict[Key, str]:
    """Give all that a trial has come to, in every digit, but for what it took."""
    found: dict[Key, str] = {}
    for trial in results.trials:
        assert trial.outcome is not None, trial.error
        content = to_json(trial.outcome)
        del content["costs"]
        del content["curve"]["seconds"]
        key = (trial.optimizer, trial.phase, str(trial.number))
        assert key not in found
        found[key] = json.dumps([trial.seed, dict(trial.settings), content])
    return found


def trials(queue: TrialQueue) -> list[FrozenTrial]:
    return queue._trials._optuna_study.get_trials()


def amid(queue: TrialQueue, worker: warm_python.WarmProcess) -> int:
    """Wait until a trial is being trained and has come through two epochs."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        assert worker.poll() is None, worker.wait(PATIENCE_S)
        for trial in trials(queue):
            if trial.state == TrialState.RUNNING and len(trial.intermediate_values) >= 2:
                return trial._trial_id
        # To look takes the worker's time too.
        time.sleep(0.05)
    raise TimeoutError("no trial was trained")


def caught(queue: TrialQueue, start: Start, how: signal.Signals, end: TrialState) -> FrozenTrial:
    """End a lonely worker in the middle of a trial; if it has just ended that, do so again."""
    while True:
        worker = start()
        trial = amid(queue, worker)
        worker.send_signal(how)
        worker.wait(PATIENCE_S)
        assert worker.returncode == (-how if how == signal.SIGKILL else 128 + how)
        found: FrozenTrial = queue.storage.get_trial(trial)
        if found.state == end:
            return found


def ended(worker: warm_python.WarmProcess) -> str:
    """Wait for the end of the study; return what the worker has said."""
    said = worker.wait(PATIENCE_S)
    assert worker.returncode == 0, said
    return said


def attempts(queue: TrialQueue) -> list[list[FrozenTrial]]:
    """Gather the trials that ran for the same number of a contender's."""
    found: dict[tuple[Any, ...], list[FrozenTrial]] = {}
    for trial in trials(queue):
        attributes = trial.user_attrs
        key = attributes["optimizer"], attributes["phase"], attributes["number"]
        found.setdefault(key, []).append(trial)
    return list(found.values())


def assert_no_epoch_was_trained_twice(queue: TrialQueue) -> None:
    """Look at what all attempts have noted; an epoch may be kept, and its note be cut off."""
    assert len(attempts(queue)) == queue.trial_count() == TRIALS
    for tries in attempts(queue):
        steps = [step for trial in tries for step in sorted(trial.intermediate_values)]
        assert steps == sorted(set(steps))
        assert EPOCHS - len(tries) < len(steps) <= EPOCHS
        assert [trial.state for trial in tries].count(TrialState.COMPLETE) == 1
        assert tries[-1].state == TrialState.COMPLETE


def test_killed_workers_cost_nothing(
    queue: TrialQueue, start: Start, undisturbed: StudyResults, tmp_path: Path
) -> None:
    killed = caught(queue, start, signal.SIGKILL, TrialState.RUNNING)
    # Two others come later, and one of them is killed as well.
    second, last = start(), start()
    amid(queue, second)
    second.kill()
    ended(last)

    assert queue.results().complete
    assert numbers(queue.results()) == numbers(undisturbed)
    lost = queue.storage.get_trial(killed._trial_id)
    assert lost.state == TrialState.FAIL
    assert len(lost.intermediate_values) >= 2
    assert "outcome" not in lost.user_attrs
    assert_no_epoch_was_trained_twice(queue)
    assert not list((tmp_path / "out" / "unfinished").glob("*.pt"))


def test_a_worker_that_is_asked_to_end_gives_its_trial_back(
    queue: TrialQueue,
    start: Start,
    study: PlannedStudy,
    undisturbed: StudyResults,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    given_back = caught(queue, start, signal.SIGTERM, TrialState.FAIL)
    assert given_back.user_attrs["released"]
    # At once, and not after six signs of life that did not come.
    (waiting,) = (tries[-1] for tries in attempts(queue) if given_back in tries)
    assert waiting.state == TrialState.WAITING
    left = queue.trial_count() - len(queue.results().trials)
    monkeypatch.setattr(worker_module, "_REPORT_S", 0.0)
    assert work(queue.storage, study, RunContext(tmp_path / "out")) == left
    assert numbers(queue.results()) == numbers(undisturbed)
    assert_no_epoch_was_trained_twice(queue)


def test_a_storage_that_is_away_for_a_moment_costs_nothing(
    queue: TrialQueue,
    study: PlannedStudy,
    undisturbed: StudyResults,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    opened: Open,
    where: str,
    tmp_path: Path,
) -> None:
    """It goes in the second epoch of the third trial, and is back when two have tried to end it."""
    monkeypatch.setattr(storage_module, "_TIMEOUT_S", 0)
    monkeypatch.setattr(worker_module, "_REPORT_S", 0.0)
    storage = opened(where)
    begun, pauses = [], []
    train = worker_module.train

    def train_meanwhile(
        run: Any, data: Any, place: RunContext, on_epoch: Callable[..., None], **rest: Any
    ) -> Any:
        begun.append(run)

        def on_this_epoch(number: int, epoch: Any) -> None:
            if len(begun) == 3 and number == 1:
                outage.enter_context(away(storage, request))
            on_epoch(number, epoch)

        return train(run, data, place, on_this_epoch, **rest)

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            outage.close()

    clock = SimpleNamespace(sleep=pause, monotonic=time.monotonic)
    monkeypatch.setattr(storage_module, "time", clock)
    monkeypatch.setattr(worker_module, "train", train_meanwhile)
    with ExitStack() as outage:
        assert work(storage, study, RunContext(tmp_path / "out")) == TRIALS
    assert len(pauses) == 2
    assert numbers(queue.results()) == numbers(undisturbed)
    steps = sorted(len(trial.intermediate_values) for trial in trials(queue))
    assert steps == [1] + [EPOCHS] * (TRIALS - 1)


@pytest.mark.parametrize("kind", [MemoryError("RuntimeError: no"), OSError("the disk is full")])
def test_a_failure_is_the_trials_and_a_full_disk_the_machines(
    kind: Exception,
    study: PlannedStudy,
    opened: Open,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    storage = opened(str(tmp_path), create=True)
    queue = TrialQueue(storage, study)

    def fail(*_: Any, **rest: Any) -> None:
        raise kind

    monkeypatch.setattr(worker_module, "train", fail)
    said: list[str] = []
    if isinstance(kind, OSError):
        with pytest.raises(OSError, match="the disk is full"):
            work(storage, study, RunContext(tmp_path), lambda assignment, how: said.append(how))
        assert said == []
        assert queue.results().trials == ()
        states = [trial.state for trial in trials(queue)]
        assert states.count(TrialState.WAITING) == queue.trial_count()
        return
    trained = work(storage, study, RunContext(tmp_path), lambda assignment, how: said.append(how))
    assert trained == 9
    assert said == ["failed: MemoryError: RuntimeError: no"] * 9
    errors = [trial.error for trial in queue.results().trials]
    assert errors.count("MemoryError: RuntimeError: no") == 9
    assert errors.count("no trial ended with a finite loss") == 3


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"source": "0123"}, r"steppe: this is not the code that .*: source \w+ for 0123\n"),
        ({"torch": "1.4"}, r"steppe: this is not the code that .*: torch \S+ for 1.4\n"),
        ("class", r"steppe: source of \S+ must be '', that of the class here, got '0123': .*\n"),
        ("fingerprint", r"steppe: the data of digits here \(\w+-128\) is not .* \(other\)\n"),
    ],
    ids=str,
)
def test_other_code_or_data_is_refused(
    changed: Any, message: str, study: PlannedStudy, opened: Open, tmp_path: Path
) -> None:
    if changed == "fingerprint":
        other = replace(study, setup=replace(study.setup, fingerprint="other"))
    elif changed == "class":
        last = replace(study.contenders[-1], source="0123")
        other = replace(study, contenders=(*study.contenders[:-1], last))
    else:
        other = replace(study, versions={**study.versions, **changed})
    storage = opened(str(tmp_path), create=True)
    save_study(storage, other)
    queue = TrialQueue(storage, other)
    ended = run_steppe("worker", "--storage", tmp_path)
    assert ended.exit_code == 2
    assert re.fullmatch(message, ended.stderr), ended.stderr
    assert {trial.state for trial in trials(queue)} == {TrialState.WAITING}


@pytest.mark.parametrize("where", ["sqlite"], indirect=True)
def test_more_processes_than_a_study_can_be_trained_in_touch_no_trial(
    where: str, opened: Open, start: Start
) -> None:
    options = StudyOptions(["adamw"], samples=2, batch_size=2, epochs=1, budget=1, trials=3)
    small = plan_study("digits", options, USUAL, RunContext(Path()))
    storage = opened(where, create=True)
    save_study(storage, small)
    queue = TrialQueue(storage, small)
    for process in launched(start):
        said = process.wait(PATIENCE_S)
        assert "steppe: adamw cannot train digits: samples must leave one of validation" in said
        assert process.returncode == 2
    assert {trial.state for trial in trials(queue)} == {TrialState.WAITING}


@pytest.mark.parametrize("where", ["sqlite"], indirect=True)
def test_two_processes_train_each_trial_together(
    queue: TrialQueue, start: Start, undisturbed: StudyResults
) -> None:
    first, second = launched(start)
    # The trial is thought dead, so both have to leave it.
    lost = amid(queue, first)
    queue.storage.set_trial_state_values(lost, TrialState.FAIL)
    said = ended(first)
    assert [line.rpartition(": ")[2] for line in said.splitlines()].count("lost") == 1
    assert said.count(" has ended; ") == 1
    assert ended(second) == ""

    assert queue.results().complete
    for one, other in zip(queue.results().trials, undisturbed.trials, strict=True):
        assert (one.optimizer, one.settings) == (other.optimizer, other.settings)
        assert one.outcome is not None
        assert other.outcome is not None
        assert curve(one.outcome) == pytest.approx(curve(other.outcome), rel=1e-5)
        found, expected = asdict(one.outcome.final), asdict(other.outcome.final)
        assert found.pop("test_others") == expected.pop("test_others") == {}
        assert found == pytest.approx(expected, rel=1e-5, nan_ok=True)


def curve(outcome: Outcome) -> list[float]:
    return [x for e in outcome.curve for x in (e.train_loss, e.validation_loss, e.validation_score)]
