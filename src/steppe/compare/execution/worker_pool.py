"""The workers on this machine, and how far the study has got."""

import contextlib
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from steppe._shared.console import FAILED, INTERRUPTED
from steppe.compare.execution.trial_queue import TrialQueue
from steppe.compare.execution.worker import OnTrial, terminable, work
from steppe.compare.planning.study import Study
from steppe.compare.records.results import TUNE, Trial, trial_label
from steppe.compare.training.run import RunContext

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

#: Where workers find the storage: a command line, and the password in it, is for all to see.
STORAGE = "STEPPE_STORAGE"

_LOOK_S = 2.0
_PATIENCE_S = 30.0


class WorkerPool:
    """Starts workers, or joins a launch, and watches the study until it has ended.

    Parameters
    ----------
    ledger : TrialQueue
        The study's.
    place : RunContext
        Where the workers train.
    storage : str
        The study's storage, as the user named it.
    heartbeat : int
        Seconds between signs of life.
    """

    def __init__(self, ledger: TrialQueue, place: RunContext, storage: str, heartbeat: int) -> None:
        self._ledger, self._place = ledger, place
        self._storage, self._heartbeat = storage, heartbeat
        self._told: set[tuple[str, str, int]] = set()

    def run(self, console: Console, count: int) -> int:
        """Run ``count`` workers to the end of the study.

        Without any, it waits for those elsewhere.

        Returns
        -------
        int
            The command's status: 0, or what Ctrl-C or the end of all workers makes of it.
        """
        self._told = {_key(trial) for trial in self._ledger.results().trials}
        if self._ledger.ended():
            return 0
        if count == 0:
            line = f"To work at it: {shlex.join([*self._command(), '--storage', self._storage])}"
            console.print(line, soft_wrap=True, highlight=False, markup=False)
        team: list[subprocess.Popen[bytes]] = []
        # A kill is passed on too: in sessions of their own, workers would outlive this process.
        with terminable():
            try:
                for number in range(count):
                    team.append(self._start(number))
                return self._watch(console, team)
            except KeyboardInterrupt:
                return INTERRUPTED
            finally:
                _stop(team)

    def join(self, console: Console) -> int:
        """Train here to the end of the study, with the other processes of a distributed launch.

        Returns
        -------
        int
            The command's status: 0, or what Ctrl-C makes of it.
        """
        ledger = self._ledger
        self._told = {_key(trial) for trial in ledger.results().trials}
        return assist(ledger.study, self._place, ledger.storage, lambda *_: self._tell(console))

    def _watch(self, console: Console, team: "list[subprocess.Popen[bytes]]") -> int:
        ledger = self._ledger
        whole = ledger.trials() * ledger.study.setup.epochs
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("epochs"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
            bar = progress.add_task("training", total=whole)
            while True:
                # Before the books are read: what the last one wrote is in them.
                gone = team and all(worker.poll() is not None for worker in team)
                ended, epochs = ledger.progress()
                progress.update(bar, completed=epochs)
                if ended > len(self._told):
                    self._tell(console)
                if ended == ledger.trials():
                    return 0
                if gone:
                    self._explain(console, team)
                    return FAILED
                time.sleep(_LOOK_S)

    def _tell(self, console: Console) -> None:
        """Write a line for each trial that has ended since the last look."""
        results = self._ledger.results()
        for trial in results.trials:
            if _key(trial) in self._told:
                continue
            self._told.add(_key(trial))
            line = f"[{len(self._told)}/{self._ledger.trials()}] {_described(trial)}"
            console.print(line, highlight=False, markup=False)

    def _explain(self, console: Console, team: "list[subprocess.Popen[bytes]]") -> None:
        for number, worker in enumerate(team):
            log = self._log(number)
            last = "".join(log.read_text(errors="replace").strip().splitlines()[-1:])
            line = f"Worker {number} has ended with status {worker.returncode}: {last} ({log})"
            console.print(line, highlight=False, markup=False)

    def _start(self, number: int) -> "subprocess.Popen[bytes]":
        log = self._log(number)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as file:
            # In a session of its own, so that Ctrl-C comes here alone and is passed on once.
            return subprocess.Popen(
                self._command(),
                stdout=file,
                stderr=file,
                env={**os.environ, STORAGE: self._storage},
                start_new_session=True,
            )

    def _log(self, number: int) -> Path:
        return self._place.out / "logs" / f"worker-{number}.log"

    def _command(self) -> list[str]:
        place = self._place
        options = {
            "--study": self._ledger.study.name,
            "--device": place.device,
            "--threads": place.threads,
            "--heartbeat": self._heartbeat,
            "--out": place.out,
            "--data": place.data,
            "--track": place.track,
        }
        given = [str(x) for pair in options.items() if pair[1] not in (None, "") for x in pair]
        given += [] if place.keep else ["--no-checkpoints"]
        return [sys.executable, "-m", "steppe", "worker", *given]


def assist(
    study: Study,
    place: RunContext,
    storage: "RDBStorage | None" = None,
    on_trial: OnTrial = lambda assignment, how: None,
) -> int:
    """Train with the other processes of a launch, of which the first has the storage.

    Returns
    -------
    int
        The command's status: 0, or what Ctrl-C makes of it.
    """
    try:
        work(storage, study, place, on_trial)
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def _stop(team: "list[subprocess.Popen[bytes]]") -> None:
    """Let workers put away what they have in hand."""
    for worker in team:
        worker.terminate()
    try:
        for worker in team:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.wait(_PATIENCE_S)
    finally:
        for worker in team:
            worker.kill()


def _key(trial: Trial) -> tuple[str, str, int]:
    return trial.optimizer, trial.phase, trial.number


def _described(trial: Trial) -> str:
    name = trial_label(trial.optimizer, trial.phase, trial.number)
    if trial.outcome is None:
        return f"{name}: failed: {trial.error}"
    if trial.outcome.diverged:
        return f"{name}: diverged"
    final = trial.outcome.final
    if trial.phase == TUNE:
        return f"{name}: validation {final.validation_score:.4f}, loss {final.validation_loss:.4f}"
    return f"{name}: test {final.test_score:.4f}, loss {final.test_loss:.4f}"
