"""The processes of a distributed launch, which train each trial together.

``accelerate launch`` and ``torchrun`` start them. Most often there is one process, and everything
here does nothing but call what it is given.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from steppe._shared.interrupts import raise_if_stopped
from steppe._shared.messages import first_line
from steppe.compare.execution.trial_queue import Assignment, TrialQueue
from steppe.compare.planning.study import PlannedStudy
from steppe.compare.training.run import RunContext

if TYPE_CHECKING:
    from accelerate import PartialState
    from optuna.storages import RDBStorage

# How long a process waits for the others to fail too, and how often it looks.
_FAILURE_WAIT_S = 60.0
_FAILURE_POLL_S = 0.1

_T = TypeVar("_T")


class TakenOverError(Exception):
    """The trial was given to another worker: this one had given no heartbeat for too long."""


def launched_processes(context: RunContext) -> "PartialState":
    """Join the other processes of a distributed launch, if there are any.

    Parameters
    ----------
    context : RunContext
        Its device decides how processes speak to each other.
    """
    from accelerate import PartialState

    return PartialState(cpu=context.device == "cpu")


class LaunchGroup:
    """The processes of a distributed launch.

    Parameters
    ----------
    storage : optuna.storages.RDBStorage or None
        Where the study is; only the first process needs it.
    study : PlannedStudy
        The study.
    context : RunContext
        Where to train.

    Attributes
    ----------
    queue : TrialQueue or None
        The study's trials; None in all processes but the first.
    """

    def __init__(
        self, storage: "RDBStorage | None", study: PlannedStudy, context: RunContext
    ) -> None:
        self._state = launched_processes(context)
        first = self._state.is_main_process
        self.queue = TrialQueue(storage, study) if storage is not None and first else None

    @property
    def size(self) -> int:
        """Number of processes."""
        return int(self._state.num_processes)

    def ask_queue(self, question: Callable[[TrialQueue], _T]) -> _T:
        """Call ``question`` with the queue in the first process; return its answer in all."""
        from accelerate.utils import broadcast_object_list

        answers: list[Any] = [question(self.queue) if self.queue else None]
        if self.size > 1:
            broadcast_object_list(answers)
        answer: _T = answers[0]
        return answer

    @contextmanager
    def raise_if_all_failed(self, assignment: Assignment) -> Iterator[None]:
        """Raise an error of the block as the trial's own only if all processes failed in it.

        If one process is killed, the others fail in their next collective operation. That says
        nothing about the trial.

        Raises
        ------
        ConnectionError
            Some processes have not failed.
        """
        try:
            yield
        except (TakenOverError, OSError):
            raise
        except Exception as error:
            if self.size > 1 and not self._all_failed(assignment):
                raise ConnectionError(
                    f"not all of the launch's processes have failed in {assignment.label}: "
                    f"{first_line(error)}"
                ) from error
            raise

    def _all_failed(self, assignment: Assignment) -> bool:
        # Through the store and not by a collective operation: a process that has not failed is
        # waiting in another one.
        from torch.distributed.distributed_c10d import _get_default_store

        store = _get_default_store()
        names = [f"steppe/failed/{assignment.trial_id}/{rank}" for rank in range(self.size)]
        store.set(names[self._state.process_index], "")
        until = time.monotonic() + _FAILURE_WAIT_S
        while not store.check(names):
            if time.monotonic() > until:
                return False
            # Not store.wait(): the launcher sends SIGTERM to the processes that are left, and
            # Python handles signals between its own instructions only.
            raise_if_stopped()
            time.sleep(_FAILURE_POLL_S)
        return True
