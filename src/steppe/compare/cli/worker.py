"""The command ``steppe worker``."""

from pathlib import Path
from typing import Annotated

import typer

from steppe._shared.cli_options import Checkpoints, Data, Device, Heartbeat, StudyName, Track
from steppe._shared.console import INTERRUPTED, make_console, refusals
from steppe.compare.execution.launch_group import launched_processes
from steppe.compare.execution.stored_studies import find_study
from steppe.compare.execution.study_storage import HEARTBEAT, open_storage
from steppe.compare.execution.trial_queue import Assignment
from steppe.compare.execution.worker import work
from steppe.compare.execution.worker_pool import STORAGE_VARIABLE
from steppe.compare.planning.study import check_place
from steppe.compare.training.run import RunContext


def worker(
    storage: Annotated[
        str,
        typer.Option(
            envvar=STORAGE_VARIABLE,
            help="The study's URL, file or directory, as steppe compare was given it.",
        ),
    ],
    study: StudyName = None,
    device: Device = "cpu",
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    heartbeat: Heartbeat = HEARTBEAT,
    out: Annotated[
        Path, typer.Option(help="Directory of checkpoints and of runs in progress.")
    ] = Path("results"),
    data: Data = None,
    track: Track = "",
    checkpoints: Checkpoints = True,
) -> None:
    """Join a study that steppe compare has planned, on this machine or any other.

    It trains trial by trial until all have ended. Killed, it loses at most the trial in hand, which
    is taken up again; with SIGTERM or Ctrl-C it gives the trial back at once. accelerate launch -m
    steppe worker … trains each trial on several devices.
    """
    console = make_console()
    with refusals():
        place = RunContext(out, device, threads, data, track, checkpoints)
        # Before a trial is taken: it would fail, and not be tried again.
        check_place(place)
        opened = open_storage(storage, heartbeat=heartbeat)
        found = find_study(opened, study)

        def on_trial(assignment: Assignment, how: str) -> None:
            console.out(f"{assignment.label}: {how}", highlight=False)

        try:
            done = work(opened, found, place, on_trial)
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
    if launched_processes(place).is_main_process:
        console.print(f"{found.name} has ended; {done} trials of it here.", highlight=False)
