"""What fails in all processes of a launch is the trial; what fails in some of them is not."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers.process_group import PATIENCE_S, join, started
from steppe.compare.execution import launch_group, worker
from steppe.compare.execution.study_storage import open_storage
from steppe.compare.execution.trial_queue import TrialQueue
from steppe.compare.planning.presets import USUAL
from steppe.compare.planning.study import PlannedStudy, StudyOptions, plan_study
from steppe.compare.records.results import Outcome
from steppe.compare.training.run import Run, RunContext

pytestmark = pytest.mark.thorough

SIZES = {"samples": 64, "batch_size": 16, "epochs": 1, "budget": 1, "trials": 3}


def planned() -> PlannedStudy:
    options = StudyOptions(optimizers=["adamw", "sgd-momentum"], **SIZES)
    return plan_study("digits", options, USUAL, RunContext(Path()))


def test_a_trial_is_given_back_by_those_that_a_killed_process_leaves(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path), create=True)
    queue = TrialQueue(storage, planned())
    with started(__file__, tmp_path, 2) as (first, second):
        errors = [process.wait(PATIENCE_S) for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, -signal.SIGKILL), "\n".join(errors)

    (failed,) = queue.results().trials
    assert (failed.optimizer, failed.error) == ("adamw", "ArithmeticError: no")
    assert queue.take().contender.name == "sgd-momentum"


def work(rank: int, folder: Path) -> None:
    """Be one of two processes: both fail in the first trial, one is killed in the second."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    os.environ |= {name: str(value) for name, value in place.items()}
    join(rank, folder, 2)
    train = worker.train

    def disturbed(run: Run, *arguments: Any, **options: Any) -> Outcome:
        if run.recipe.name == "adamw":
            raise ArithmeticError("no")
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        launch_group._FAILURE_WAIT_S = 0  # nobody is left to wait for
        return train(run, *arguments, **options)

    worker.train = disturbed
    storage = open_storage(str(folder)) if rank == 0 else None
    with pytest.raises(ConnectionError, match="not all of the launch's processes have failed in"):
        worker.work(storage, planned(), RunContext(folder))
    os._exit(0)  # the group cannot be taken down in good order any more


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]))
