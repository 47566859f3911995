"""Many processes that do the same at once."""

import multiprocessing
import time
from collections.abc import Callable
from typing import Any

PATIENCE_S = 120

# Once, not in every process; Optuna imports them late.
_PRELOADED = (
    "alembic.command",
    "optuna.storages._rdb.models",
    "psycopg",
    "sqlalchemy.dialects.postgresql",
    "steppe.compare.execution.trial_queue",
    "helpers.synthetic_studies",
)


def together(act: Callable[..., Any], count: int, *arguments: Any) -> list[Any]:
    """Let ``count`` processes call a function of this module at one moment; return what each got.

    What one raises is raised here.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*_PRELOADED, __name__])
    barrier, answers = context.Barrier(count), context.Queue()
    processes = [
        context.Process(target=_one, args=(act, barrier, answers, arguments), daemon=True)
        for _ in range(count)
    ]
    for process in processes:
        process.start()
    found = [answers.get(timeout=PATIENCE_S) for _ in processes]
    for process in processes:
        process.join(PATIENCE_S)
    for each in found:
        if isinstance(each, Exception):
            raise each
    return found


def _one(act: Callable[..., Any], barrier: Any, answers: Any, arguments: Any) -> None:
    try:
        answers.put(act(barrier, *arguments))
    except Exception as error:
        barrier.abort()
        answers.put(error)


def open_new(barrier: Any, where: str) -> int:
    """Make a storage, or open it if another has been faster; count its studies."""
    from steppe.compare.execution.study_storage import open_storage

    barrier.wait(PATIENCE_S)
    return len(open_storage(where, create=True).get_all_studies())


def claim(barrier: Any, where: str, trials: list[int]) -> list[int]:
    """Claim every trial; return those that this process has got."""
    from optuna.trial import TrialState

    from steppe.compare.execution.study_storage import open_storage

    storage = open_storage(where)
    barrier.wait(PATIENCE_S)
    return [each for each in trials if storage.set_trial_state_values(each, TrialState.RUNNING)]


def plan(barrier: Any, where: str, study: Any) -> None:
    """Plan a study that nobody has planned."""
    from steppe.compare.execution.study_storage import open_storage
    from steppe.compare.execution.trial_queue import TrialQueue

    storage = open_storage(where)
    queue = TrialQueue(storage, study, plan=False)
    barrier.wait(PATIENCE_S)
    queue.add_missing_trials()


def work_off(barrier: Any, where: str, study: Any) -> list[tuple[str, str, int]]:
    """Take and end trials until all have ended; return those that this process has had."""
    from helpers.synthetic_studies import outcome
    from steppe.compare.execution.study_storage import open_storage
    from steppe.compare.execution.trial_queue import TrialQueue

    queue = TrialQueue(open_storage(where), study, plan=False)
    found = []
    barrier.wait(PATIENCE_S)
    while not queue.all_ended():
        if (taken := queue.take()) is None:
            time.sleep(0.1)
            continue
        assert queue.finish(taken, outcome(), "here")
        found.append((taken.contender.name, taken.phase, taken.number))
    return found
