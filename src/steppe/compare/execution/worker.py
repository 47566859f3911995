"""A worker: takes trials of a study one by one, until all have ended."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

from steppe._shared.plurals import first_line
from steppe._shared.recipes import find_recipe
from steppe.compare.data.datasets import Data
from steppe.compare.execution.study_storage import alive
from steppe.compare.execution.trial_queue import Assignment, TrialQueue, whereabouts
from steppe.compare.planning.study import Study, rehearse, versions
from steppe.compare.records.results import Epoch
from steppe.compare.tasks import data_of, find_task
from steppe.compare.training.run import Run, RunContext
from steppe.compare.training.train import train

if TYPE_CHECKING:
    from accelerate import PartialState
    from optuna.storages import RDBStorage

_PAUSE_S = 1.0
_LOST = "lost"

# How long a process waits for the others to fail as it has, and how often it looks.
_TOGETHER_S = 60.0
_GLANCE_S = 0.1

_T = TypeVar("_T")

OnTrial = Callable[[Assignment, str], None]


class LostError(Exception):
    """The trial was thought dead and given to another worker."""


def processes(place: RunContext) -> "PartialState":
    """Join the processes of a distributed launch; most often there is one."""
    from accelerate import PartialState

    return PartialState(cpu=place.device == "cpu")


def work(
    storage: "RDBStorage | None",
    study: Study,
    place: RunContext,
    on_trial: OnTrial = lambda assignment, how: None,
) -> int:
    """Work at a study until every trial has ended, here or at other workers.

    SIGTERM and Ctrl-C give the trial in hand back, from its last epoch. In a distributed launch all
    processes train each trial together, and the first one keeps the books.

    Parameters
    ----------
    storage : optuna.storages.RDBStorage or None
        Where the study is. Of a launch's processes only the first needs it.
    study : Study
        The study.
    place : RunContext
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
    _same_code(study)
    data = data_of(study.setup, place.data)
    if data.fingerprint != study.setup.fingerprint:
        raise ValueError(
            f"the data of {study.setup.task} here ({data.fingerprint}) is not what the study was "
            f"planned with ({study.setup.fingerprint})"
        )
    crew = _Crew(storage, study, place)
    if crew.size > 1:
        # The study may have been planned by one: every trial would fail, and not be tried again.
        rehearse(study, study.contenders[0], data, place)
    done = 0
    with terminable():
        while (assignment := _next(crew)) is not None:
            how = _carry_out(assignment, crew, study, data, place)
            done += how != _LOST
            if crew.ledger:
                on_trial(assignment, how)
    return done


class _Crew:
    """The processes of a distributed launch, which do the same trials; most often it is one.

    Attributes
    ----------
    ledger : TrialQueue or None
        The study's; the first process alone has it.
    """

    def __init__(self, storage: "RDBStorage | None", study: Study, place: RunContext) -> None:
        self._state = processes(place)
        first = self._state.is_main_process
        self.ledger = TrialQueue(storage, study) if storage is not None and first else None

    @property
    def size(self) -> int:
        """Number of processes."""
        return int(self._state.num_processes)

    def share(self, act: Callable[[TrialQueue], _T]) -> _T:
        """Let the first process do something, and tell all what came of it."""
        from accelerate.utils import broadcast_object_list

        parcel: list[Any] = [act(self.ledger) if self.ledger else None]
        if self.size > 1:
            broadcast_object_list(parcel)
        found: _T = parcel[0]
        return found

    @contextmanager
    def together(self, assignment: Assignment) -> Iterator[None]:
        """Let an error in the trial through once all processes have failed in it.

        They do not tell by a message among them: those that have not failed wait for another one.

        Raises
        ------
        ConnectionError
            Some have not, so that this says nothing about the trial: most often one was killed, and
            the error is what the others make of it.
        """
        try:
            yield
        except (LostError, OSError):
            raise
        except Exception as error:
            if self.size > 1 and not self._all_failed(assignment):
                raise ConnectionError(
                    f"not all of the launch's processes have failed in {assignment.label}: "
                    f"{first_line(error)}"
                ) from error
            raise

    def _all_failed(self, assignment: Assignment) -> bool:
        from torch.distributed.distributed_c10d import _get_default_store

        store = _get_default_store()
        names = [f"steppe/failed/{assignment.trial_id}/{rank}" for rank in range(self.size)]
        store.set(names[self._state.process_index], "")
        until = time.monotonic() + _TOGETHER_S
        while not store.check(names):
            if time.monotonic() > until:
                return False
            # The launcher ends those that are left: that must get through.
            time.sleep(_GLANCE_S)
        return True


def _next(crew: _Crew) -> Assignment | None:
    """Wait for a trial that can be run; None once all have ended."""
    while True:
        # Told at each look, as processes that hear nothing for minutes give up.
        assignment, over = crew.share(_look)
        if assignment is not None or over:
            return assignment
        time.sleep(_PAUSE_S)


def _look(ledger: TrialQueue) -> tuple[Assignment | None, bool]:
    """Take a trial if there is one; else say whether all have ended."""
    assignment = ledger.take()
    if assignment is None:
        # Some may have been lost with their workers.
        ledger.complement()
        assignment = ledger.take()
    return assignment, assignment is None and ledger.ended()


def _carry_out(
    assignment: Assignment, crew: _Crew, study: Study, data: Data, place: RunContext
) -> str:
    """Train a trial and keep what came of it; say how it went."""
    recipe = find_recipe(assignment.contender.name)
    run = Run(study.setup, recipe, assignment.settings, assignment.seed, assignment.phase)
    where = whereabouts(place.device, place.threads, crew.size)

    def on_epoch(number: int, epoch: Epoch) -> None:
        if not crew.share(lambda ledger: ledger.note(assignment, number, epoch)):
            raise LostError

    ledger = crew.ledger
    try:
        life = alive(ledger.storage, assignment.trial_id) if ledger else nullcontext()
        with life, crew.together(assignment):
            outcome = train(run, data, place, on_epoch)
            kept = crew.share(lambda ledger: ledger.finish(assignment, outcome, where))
    except LostError:
        return _LOST
    except (KeyboardInterrupt, SystemExit, OSError):
        # A full disk, or a storage out of reach, says nothing about the trial: others may run it.
        if ledger:
            ledger.release(assignment)
        raise
    except Exception as error:
        if ledger:
            ledger.fail(assignment, first_line(error), where)
        return f"failed: {first_line(error)}"
    if not kept:
        return _LOST
    if outcome.diverged:
        return "diverged"
    return f"validation {study.metric.name} {outcome.final.validation_score:.4f}"


def _same_code(study: Study) -> None:
    here = versions(find_task(study.setup.task).packages)
    other = [name for name in here if name != "python" and here[name] != study.versions[name]]
    if other:
        pairs = ", ".join(f"{name} {here[name]} for {study.versions[name]}" for name in other)
        raise ValueError(f"this is not the code that the study was planned with: {pairs}")


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM end the process as Ctrl-C does, with what is in hand put away."""

    def stop(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
