"""A worker: takes trials of a study one by one, until all have ended."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from steppe.commands.wording import first_line
from steppe.compare.ledger import Assignment, Ledger, whereabouts
from steppe.compare.optimizers import find_recipe
from steppe.compare.results import Epoch
from steppe.compare.run import Place, Run
from steppe.compare.storage import alive
from steppe.compare.study import Study, versions
from steppe.compare.tasks import find_task
from steppe.compare.train import train

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

_PAUSE_S = 1.0

OnTrial = Callable[[Assignment, str], None]


class LostError(Exception):
    """The trial was thought dead and given to another worker."""


def work(
    storage: "RDBStorage",
    study: Study,
    place: Place,
    on_trial: OnTrial = lambda assignment, how: None,
) -> int:
    """Work at a study until every trial has ended, here or at other workers.

    SIGTERM and Ctrl-C give the trial in hand back, from its last epoch. In a distributed launch all
    processes train each trial together, and the first one keeps the books.

    Parameters
    ----------
    storage : optuna.storages.RDBStorage
        Where the study is.
    study : Study
        The study.
    place : Place
        Where to train.
    on_trial : callable
        Called with every trial and how it ended.

    Returns
    -------
    int
        How many trials it has ended.

    Raises
    ------
    ValueError
        If the code or the data here is not what the study was planned with.
    """
    _same_code(study)
    data = find_task(study.setup.task).data(place.data, study.setup.samples)
    if data.fingerprint != study.setup.fingerprint:
        raise ValueError(
            f"the data of {study.setup.task} here ({data.fingerprint}) is not what the study was "
            f"planned with ({study.setup.fingerprint})"
        )
    crew = _Crew(place)
    ledger = Ledger(storage, study) if crew.leads else None
    done = 0
    with terminable():
        while (assignment := crew.share(lambda: _next(ledger))) is not None:
            how = _carry_out(assignment, ledger, study, data, place)
            on_trial(assignment, how)
            done += how != "lost"
    return done


def _next(ledger: Ledger | None) -> Assignment | None:
    """Wait for a trial that can be run; None once all have ended."""
    assert ledger is not None
    while (assignment := ledger.take()) is None:
        if ledger.ended():
            return None
        time.sleep(_PAUSE_S)
        ledger.complement()
    return assignment


def _carry_out(
    assignment: Assignment, ledger: Ledger | None, study: Study, data: Any, place: Place
) -> str:
    recipe = find_recipe(assignment.contender.name)
    run = Run(study.setup, recipe, assignment.settings, assignment.seed, assignment.phase)
    if ledger is None:
        train(run, data, place)
        return "joined in"
    where = whereabouts(place.device, place.threads)

    def on_epoch(number: int, epoch: Epoch) -> None:
        if not ledger.note(assignment, number, epoch):
            raise LostError

    try:
        with alive(ledger.storage, assignment.trial_id):
            outcome = train(run, data, place, on_epoch)
    except LostError:
        return "lost"
    except (KeyboardInterrupt, SystemExit):
        ledger.release(assignment)
        raise
    except Exception as error:
        ledger.fail(assignment, first_line(error), where)
        return f"failed: {first_line(error)}"
    if not ledger.finish(assignment, outcome, where):
        return "lost"
    if outcome.diverged:
        return "diverged"
    final = outcome.final
    return f"validation {study.metric.name} {final.validation_score:.4f}"


class _Crew:
    """The processes of a distributed launch, which do the same trials; most often it is one."""

    def __init__(self, place: Place) -> None:
        from accelerate import PartialState

        self._state = PartialState(cpu=place.device == "cpu")
        self.leads = self._state.is_main_process

    def share(self, found: Callable[[], Assignment | None]) -> Assignment | None:
        """Let the first process find something, and tell it to the others."""
        from accelerate.utils import broadcast_object_list

        if self._state.num_processes == 1:
            return found()
        parcel = [found() if self.leads else None]
        broadcast_object_list(parcel)
        return parcel[0]


def _same_code(study: Study) -> None:
    here = versions()
    other = [name for name in ("torch", "steppe", "source") if here[name] != study.versions[name]]
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
