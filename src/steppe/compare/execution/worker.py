"""A worker: takes a study's trials one by one and trains them, until all have ended.

A signal never becomes a trial's failure:

- Everything that a trial imports is imported before one is taken (:func:`_prepare`).
- SIGINT, SIGTERM and SIGHUP interrupt training only. The trial is given back at once, whatever the
  interrupted code has made of the signal (:func:`_given_back_if_stopped`).
- After SIGKILL, or a power failure, the worker's heartbeats stop. Another worker takes the trial
  after a minute (:meth:`~steppe.compare.execution.trial_queue.TrialQueue.add_missing_trials`).

Either way it goes on from the last epoch that was saved
(:meth:`~steppe.compare.training.train.Training.resume`).
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from steppe._shared.interrupts import (
    ending_at_once,
    raise_if_stopped,
    stop_requests,
    stop_signals,
    stopping_at_once,
)
from steppe._shared.messages import first_line
from steppe._shared.recipes import find_recipe
from steppe.compare.execution.hardware import hardware_label
from steppe.compare.execution.launch_group import LaunchGroup, TakenOverError
from steppe.compare.execution.study_storage import send_heartbeats
from steppe.compare.execution.trial_queue import Assignment, TrialQueue
from steppe.compare.planning.continuation import check_contents, check_versions, load_same_task
from steppe.compare.planning.second_task import load_second_task
from steppe.compare.planning.study import PlannedStudy, check_trainable
from steppe.compare.records.results import Epoch
from steppe.compare.tasks.task import LoadedTask
from steppe.compare.training import checkpoint
from steppe.compare.training.run import Run, RunContext
from steppe.compare.training.train import train

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

_POLL_S = 1.0
# Seconds between two of a trial's epochs that are stored for progress bars: of epochs of 50 ms, the
# storage's commits would take a quarter of the time, and all workers wait for each other's.
_REPORT_S = 1.0
_TAKEN_OVER = "lost"

# Called with a trial and how it ended, in words.
OnTrial = Callable[[Assignment, str], None]


def work(
    storage: "RDBStorage | None",
    study: PlannedStudy,
    context: RunContext,
    on_trial: OnTrial = lambda assignment, result: None,
) -> int:
    """Train trials of a study until every trial has ended, here or at other workers.

    SIGTERM, SIGHUP and Ctrl-C give the trial in hand back, from its last epoch. In a distributed
    launch all processes train each trial together, and the first one reads and writes the storage.

    Parameters
    ----------
    storage : optuna.storages.RDBStorage or None
        Where the study is. Of a launch's processes only the first needs it.
    study : PlannedStudy
        The study.
    context : RunContext
        Where to train.
    on_trial : callable
        Called with every trial and how it ended; of a launch's processes in the first.

    Returns
    -------
    int
        How many trials it has ended.

    Raises
    ------
    ValueError
        If the code or the data here is not what the study was planned with, or the processes of a
        launch cannot train it together.
    """
    # No trial is taken yet: nothing has to be given back.
    with ending_at_once():
        check_versions(study)
        loaded = load_same_task(study, context)
        check_contents(study, loaded.task)
        then = load_second_task(study.setup.then, study.then_location, loaded, context.task)
        group = LaunchGroup(storage, study, context)
        _prepare(study, loaded, context)
    ended_here = 0
    with stop_signals():
        while (assignment := _wait_for_trial(group)) is not None:
            result = _train_trial(assignment, group, study, (loaded, then), context)
            ended_here += result != _TAKEN_OVER
            if group.queue:
                on_trial(assignment, result)
    return ended_here


def _prepare(study: PlannedStudy, loaded: LoadedTask, context: RunContext) -> None:
    """Take a step with every optimizer: what a trial needs is imported and compiled by that.

    It also shows whether the processes of a launch can train the study, which may have been planned
    for one process: every trial would fail, and not be tried again.
    """
    for contender in study.contenders:
        check_trainable(study, contender, loaded, context)
    checkpoint.import_formats()


@contextmanager
def _given_back_if_stopped(queue: TrialQueue | None, assignment: Assignment) -> Iterator[None]:
    """Give the trial back if this worker has to stop in the block, so that another can train it.

    It stops for a signal, a full disk, a storage that is out of reach, or a data loader's process
    that was killed; none of them says anything about the trial. After a signal no error does: it
    may come of code that was interrupted, or of another process that the same signal has ended.
    """
    try:
        yield
    except BaseException as error:
        stopped = stop_requests() or isinstance(error, OSError) or _is_killed_loader(error)
        if stopped or not isinstance(error, Exception):
            if queue:
                queue.release(assignment)
            raise_if_stopped()
        if _is_killed_loader(error):
            raise ConnectionError(first_line(error)) from error
        raise


def _is_killed_loader(error: BaseException) -> bool:
    """Whether a process that loads data was ended from outside, which torch only says in words."""
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid")


def _wait_for_trial(group: LaunchGroup) -> Assignment | None:
    """Wait for a trial that can be run; None once all have ended."""
    while True:
        raise_if_stopped()
        # The other processes are told each second: they give up after minutes of silence.
        assignment, all_ended = group.ask_queue(_take_trial)
        if assignment is not None or all_ended:
            return assignment
        with stopping_at_once():
            time.sleep(_POLL_S)


def _take_trial(queue: TrialQueue) -> tuple[Assignment | None, bool]:
    """Return a trial, if one can be run, and whether all have ended."""
    assignment = queue.take()
    if assignment is None:
        # Others may have been killed, and their trials are to be run again.
        queue.add_missing_trials()
        assignment = queue.take()
    return assignment, assignment is None and queue.all_ended()


def _run_of(assignment: Assignment, study: PlannedStudy) -> Run:
    recipe = find_recipe(assignment.contender.name)
    curvature = study.curvature(assignment.contender, assignment.phase, assignment.number)
    settings, seed, phase = assignment.settings, assignment.seed, assignment.phase
    return Run(study.setup, recipe, settings, seed, phase, curvature)


def _train_trial(
    assignment: Assignment,
    group: LaunchGroup,
    study: PlannedStudy,
    tasks: tuple[LoadedTask, LoadedTask | None],
    context: RunContext,
) -> str:
    """Train a trial, store its outcome or its error; return the result in words."""
    run = _run_of(assignment, study)
    hardware = hardware_label(context.device, context.threads, group.size)
    queue = group.queue

    reported = -math.inf

    def on_epoch(number: int, epoch: Epoch) -> None:
        nonlocal reported
        due = time.monotonic() - reported >= _REPORT_S
        # In a launch all processes have to ask together, whatever their clocks say.
        if group.size == 1 and not due:
            return
        reported = time.monotonic()
        if not group.ask_queue(lambda queue: queue.record_epoch(assignment, number, epoch)):
            raise TakenOverError

    heartbeats = send_heartbeats(queue.storage, assignment.trial_id) if queue else nullcontext()
    try:
        with (
            _given_back_if_stopped(queue, assignment),
            heartbeats,
            group.raise_if_all_failed(assignment),
        ):
            with stopping_at_once():
                outcome = train(run, tasks[0], context, on_epoch, then=tasks[1])
            raise_if_stopped()
            kept = group.ask_queue(lambda queue: queue.finish(assignment, outcome, hardware))
    except TakenOverError:
        return _TAKEN_OVER
    except OSError:
        raise
    except Exception as error:
        if queue:
            queue.fail(assignment, first_line(error), hardware)
        return f"failed: {first_line(error)}"
    if not kept:
        return _TAKEN_OVER
    if outcome.diverged:
        return "diverged"
    return f"validation {study.metric.name} {outcome.final.validation_score:.4f}"
