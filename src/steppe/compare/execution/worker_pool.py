"""Starts a study's workers on this machine, shows its progress, and stops them in the end."""

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
from steppe._shared.credentials import shown
from steppe._shared.interrupts import (
    StoppedError,
    stop_requests,
    stop_signals,
    stopping_at_once,
)
from steppe.compare.execution.study_storage import STORAGE_VARIABLE
from steppe.compare.execution.trial_queue import TrialQueue
from steppe.compare.execution.worker import OnTrial, work
from steppe.compare.planning.study import PlannedStudy
from steppe.compare.records.results import Trial, trial_label
from steppe.compare.training.run import RunContext

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

_POLL_S = 2.0
_POLL_FACTOR = 20
_STOP_WAIT_S = 30.0
_STOP_POLL_S = 0.1


class WorkerPool:
    """Starts workers, or joins a distributed launch, and shows progress until the study has ended.

    Parameters
    ----------
    queue : TrialQueue
        The study's trials.
    context : RunContext
        Where the workers train.
    storage : str
        The study's storage, as the user named it.
    heartbeat : int
        Seconds between signs of life.
    """

    def __init__(
        self, queue: TrialQueue, context: RunContext, storage: str, heartbeat: int
    ) -> None:
        self._queue, self._context = queue, context
        self._storage, self._heartbeat = storage, heartbeat
        self._reported: set[tuple[str, str, int]] = set()

    def run(self, console: Console, count: int) -> int:
        """Run ``count`` workers to the end of the study.

        With a count of 0 it waits for workers elsewhere.

        Returns
        -------
        int
            The command's exit status: 0; another one after Ctrl-C, or if all workers have died.
        """
        self._reported = {_key(trial) for trial in self._queue.results().trials}
        if self._queue.all_ended():
            return 0
        if count == 0:
            command = shlex.join([*self._command(), "--storage", shown(self._storage)])
            line = f"To work at it: {command}"
            console.print(line, soft_wrap=True, highlight=False, markup=False)
        workers: list[subprocess.Popen[bytes]] = []
        # A signal must reach the workers too: in sessions of their own, they would outlive this
        # process. And none may come between a worker's start and its place in the list.
        with stop_signals():
            try:
                for index in range(count):
                    workers.append(self._start(index))
                with stopping_at_once():
                    return self._watch(console, workers)
            except StoppedError as stopped:
                if stopped.code != INTERRUPTED:
                    raise
                return INTERRUPTED
            finally:
                _stop_workers(workers)

    def train_in_launch(self, console: Console) -> int:
        """Train here to the end of the study, with the other processes of a distributed launch.

        Returns
        -------
        int
            The command's exit status: 0, or another one after Ctrl-C.
        """
        queue = self._queue
        self._reported = {_key(trial) for trial in queue.results().trials}
        return join_launch(
            queue.study, self._context, queue.storage, lambda *_: self._report_ended_trials(console)
        )

    def _watch(self, console: Console, workers: "list[subprocess.Popen[bytes]]") -> int:
        queue = self._queue
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("epochs"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
            bar = progress.add_task("training", total=queue.epoch_count())
            while True:
                started = time.monotonic()
                # Looked at before the storage is read, so that what the last worker wrote is seen.
                all_dead = workers and all(worker.poll() is not None for worker in workers)
                ended, epochs = queue.progress()
                progress.update(bar, completed=epochs)
                if ended > len(self._reported):
                    self._report_ended_trials(console)
                if ended == queue.trial_count():
                    return 0
                if all_dead:
                    self._report_dead_workers(console, workers)
                    return FAILED
                # Reading takes the workers' time, too: of many trials it is done less often.
                time.sleep(max(_POLL_S, _POLL_FACTOR * (time.monotonic() - started)))

    def _report_ended_trials(self, console: Console) -> None:
        """Print a line for each trial that has ended since the last call."""
        results = self._queue.results()
        for trial in results.trials:
            if _key(trial) in self._reported:
                continue
            self._reported.add(_key(trial))
            line = f"[{len(self._reported)}/{self._queue.trial_count()}] {_describe(trial)}"
            console.print(line, highlight=False, markup=False)

    def _report_dead_workers(
        self, console: Console, workers: "list[subprocess.Popen[bytes]]"
    ) -> None:
        for index, worker in enumerate(workers):
            log = self._log(index)
            last = "".join(log.read_text(errors="replace").strip().splitlines()[-1:])
            line = f"Worker {index} has ended with status {worker.returncode}: {last} ({log})"
            console.print(line, highlight=False, markup=False)

    def _start(self, index: int) -> "subprocess.Popen[bytes]":
        log = self._log(index)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as file:
            # In a session of its own: the terminal would send it Ctrl-C, and this process SIGTERM.
            return subprocess.Popen(
                self._command(),
                stdout=file,
                stderr=file,
                env={**os.environ, STORAGE_VARIABLE: self._storage},
                start_new_session=True,
            )

    def _log(self, index: int) -> Path:
        return self._context.out / "logs" / f"worker-{index}.log"

    def _command(self) -> list[str]:
        context = self._context
        options = {
            "--study": self._queue.study.name,
            "--device": context.device,
            "--threads": context.threads,
            "--heartbeat": self._heartbeat,
            "--out-dir": context.out,
            "--data": context.data,
            "--task": context.task if isinstance(context.task, str) else "",
            "--track": context.track,
        }
        given = [str(x) for pair in options.items() if pair[1] not in (None, "") for x in pair]
        kept = (
            ["--checkpoints", context.checkpoints] if context.checkpoints else ["--no-checkpoints"]
        )
        return [sys.executable, "-m", "steppe", "worker", *given, *kept]


def join_launch(
    study: PlannedStudy,
    context: RunContext,
    storage: "RDBStorage | None" = None,
    on_trial: OnTrial = lambda assignment, result: None,
) -> int:
    """Train with the other processes of a launch, of which the first has the storage.

    Returns
    -------
    int
        The command's exit status: 0, or another one after Ctrl-C.
    """
    try:
        work(storage, study, context, on_trial)
    except StoppedError as stopped:
        if stopped.code != INTERRUPTED:
            raise
        return INTERRUPTED
    return 0


def _stop_workers(workers: "list[subprocess.Popen[bytes]]") -> None:
    """Stop workers: each has half a minute to give its trial back, unless another signal comes."""
    for worker in workers:
        worker.terminate()
    asked, until = stop_requests(), time.monotonic() + _STOP_WAIT_S
    for worker in workers:
        while stop_requests() == asked and time.monotonic() < until:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.wait(_STOP_POLL_S)
                break
    for worker in workers:
        worker.kill()


def _key(trial: Trial) -> tuple[str, str, int]:
    return trial.optimizer, trial.phase, trial.number


def _describe(trial: Trial) -> str:
    name = trial_label(trial.optimizer, trial.phase, trial.number)
    if trial.outcome is None:
        return f"{name}: failed: {trial.error}"
    if trial.outcome.diverged:
        return f"{name}: diverged"
    # Not the test results: nobody is to see them before the study is complete.
    final = trial.outcome.final
    return f"{name}: validation {final.validation_score:.4f}, loss {final.validation_loss:.4f}"
