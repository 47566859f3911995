"""The command ``steppe worker``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from steppe._shared.cli_options import (
    OUTPUT,
    WHERE,
    Checkpoints,
    Data,
    Device,
    Heartbeat,
    StudyName,
    Threads,
    Track,
)
from steppe._shared.console import make_console, refusals
from steppe._shared.interrupts import ending_at_once
from steppe.compare.execution.study_storage import HEARTBEAT, STORAGE_VARIABLE, open_storage
from steppe.compare.planning.options import check_where

if TYPE_CHECKING:
    from steppe.compare.execution.trial_queue import Assignment

WorkerStorage = Annotated[
    str,
    WHERE,
    Parameter(
        metavar="URL|FILE|DIR",
        env_var=STORAGE_VARIABLE,
        help="Where the study is kept, as steppe compare was told.",
    ),
]
WorkerOutDir = Annotated[
    Path,
    OUTPUT,
    Parameter(metavar="DIR", help="Directory for checkpoints and for runs in progress."),
]
TaskFile = Annotated[
    str,
    WHERE,
    Parameter(
        metavar="FILE:NAME",
        show_default=False,
        help="Where the study's own task is on this machine, such as mytask.py:task. Default: "
        "where it was planned.",
    ),
]


def worker(
    *,
    storage: WorkerStorage,
    study: StudyName = None,
    device: Device = "cpu",
    threads: Threads = 1,
    heartbeat: Heartbeat = HEARTBEAT,
    out_dir: WorkerOutDir = Path("results"),
    data: Data = None,
    task: TaskFile = "",
    track: Track = "",
    checkpoints: Checkpoints = "recommended",
) -> None:
    """Join a study that steppe compare has planned, on this machine or any other.

    A worker trains one trial after the other until all have ended. If it is killed, another worker
    goes on with its trial; with SIGTERM or Ctrl-C it gives the trial back at once.

    Examples
    --------
    Work at a study in a database:

        steppe worker --storage postgresql://me@host/studies --device cuda

    Train each trial on all devices of this machine:

        accelerate launch -m steppe worker --storage postgresql://me@host/studies
    """
    console = make_console()
    with refusals(), ending_at_once():
        check_where(threads, track)
        # Imported here because torch takes two seconds: help and misspelt options do without.
        from steppe.compare.execution.launch_group import launched_processes
        from steppe.compare.execution.study_registry import find_study
        from steppe.compare.execution.worker import work
        from steppe.compare.planning.study import check_place
        from steppe.compare.training.run import RunContext

        place = RunContext(out_dir, device, threads, data, track, checkpoints, task)
        # Before a trial is taken: it would fail, and not be tried again.
        check_place(place)
        opened = open_storage(storage, heartbeat=heartbeat)
        found = find_study(opened, study)

        def on_trial(assignment: "Assignment", how: str) -> None:
            console.out(f"{assignment.label}: {how}", highlight=False)

        done = work(opened, found, place, on_trial)
    if launched_processes(place).is_main_process:
        console.print(f"{found.name} has ended; {done} trials of it here.", highlight=False)
