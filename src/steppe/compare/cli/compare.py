"""The command ``steppe compare``."""

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from steppe._shared.cli_options import (
    NOT_NEGATIVE,
    WHERE,
    Checkpoints,
    Data,
    Device,
    Heartbeat,
    Open,
    OutDir,
    Storage,
    Threads,
    Track,
    limited,
)
from steppe._shared.console import INTERRUPTED, make_console, refusals
from steppe._shared.credentials import shown
from steppe._shared.interrupts import ending_at_once
from steppe.compare.cli.report import PAGE, publish
from steppe.compare.execution.launch_group import launched_processes
from steppe.compare.execution.storage_names import FILE
from steppe.compare.execution.stored_studies import save_study
from steppe.compare.execution.study_storage import HEARTBEAT, open_storage
from steppe.compare.execution.trial_queue import TrialQueue
from steppe.compare.execution.worker_pool import WorkerPool, join_launch
from steppe.compare.planning.options import STUDY, StudyOptions
from steppe.compare.planning.presets import PRESETS, Preset, find_preset, usual_for
from steppe.compare.planning.study import Study, plan
from steppe.compare.tasks import TASKS, find_task
from steppe.compare.training.run import RunContext

TaskName = Annotated[
    str | None, Parameter(help=f"{', '.join(TASKS)}. Default: the preset's, or digits.")
]
PresetName = Annotated[
    str | None,
    STUDY,
    Parameter(metavar="NAME", help=f"A paper's optimizers and settings: {', '.join(PRESETS)}."),
]
Workers = Annotated[
    int | None,
    WHERE,
    limited(NOT_NEGATIVE),
    Parameter(
        help="Processes that train here, each a trial of its own; 0 only plans, for workers "
        "elsewhere. Default: one for each core on a CPU, else 1. In a distributed launch, leave it "
        "out: its processes train each trial together."
    ),
]

_DEFAULTS = StudyOptions()


def compare(
    task: TaskName = None,
    /,
    *,
    preset: PresetName = None,
    options: StudyOptions = _DEFAULTS,
    device: Device = "cpu",
    threads: Threads = 1,
    workers: Workers = None,
    storage: Storage = None,
    heartbeat: Heartbeat = HEARTBEAT,
    out_dir: OutDir = None,
    data: Data = None,
    track: Track = "",
    checkpoints: Checkpoints = True,
    show: Open = False,
) -> None:
    """Tune optimizers alike, repeat them over seeds, and test which differences are real.

    Every optimizer gets the same number of tuning trials, scored on validation data; its best
    setting is trained with fresh seeds, and tested once. All start from the same weights and see
    the data in the same order, seed by seed. Ctrl-C, or a kill, keeps what has finished, and the
    same command goes on from the last epoch. The result is a page that can be sent to a colleague.

    Examples
    --------
    Two optimizers on handwritten digits, in about a minute:

        steppe compare digits --optimizers adamw,dualadam --budget 4 --seeds 3

    A paper's comparison, at a size for two CPU cores:

        steppe compare --preset critical-momenta --scale small

    Each trial on all devices of this machine:

        accelerate launch -m steppe compare cifar10 --device cuda
    """
    with refusals(), ending_at_once():
        name, published = _task_and_preset(task, preset, options.scale)
        out_dir = out_dir or Path("results", name)
        context = RunContext(out_dir, device, threads, data, track, checkpoints)
        launch = launched_processes(context)
        _check_workers(workers, launch.num_processes)
        study = plan(name, options, published, context, command=_typed())
        if not launch.is_main_process:
            raise SystemExit(join_launch(study, context))
        where = storage or str(out_dir / FILE)
        queue = _open_queue(where, heartbeat, study)
    console = make_console()
    pool = WorkerPool(queue, context, where, heartbeat)
    if launch.num_processes > 1:
        with refusals():
            status = pool.train_in_launch(console)
    else:
        with refusals():
            status = pool.run(console, _cores(device) if workers is None else workers)
    _report(console, queue, out_dir / PAGE, status, show=show)


def _task_and_preset(task: str | None, preset: str | None, scale: str) -> tuple[str, Preset]:
    if preset is None:
        name = find_task(task or "digits").name
        return name, usual_for(name)
    published = find_preset(preset)
    return find_task(task or published.task_at(scale)).name, published


def _check_workers(workers: int | None, launched: int) -> None:
    NOT_NEGATIVE.check("workers", workers)
    if workers is not None and launched > 1:
        raise ValueError(
            f"workers must be left out in a launch of {launched} processes, which train each trial "
            f"together, got {workers}"
        )


def _open_queue(storage: str, heartbeat: int, study: Study) -> TrialQueue:
    opened = open_storage(storage, heartbeat=heartbeat, create=True)
    save_study(opened, study)
    return TrialQueue(opened, study)


def _report(console: Console, queue: TrialQueue, page: Path, status: int, *, show: bool) -> None:
    """Print and write the results so far, and end with the status of the workers.

    Raises
    ------
    SystemExit
        If not all trials have ended.
    """
    results = queue.results()
    with refusals():
        publish(console, results, page, show=show)
    if status:
        why = "Interrupted" if status == INTERRUPTED else "No worker is left"
        console.print(f"{why}. What has finished is kept: run again to go on.")
        raise SystemExit(status)


def _typed() -> str:
    """Return what was typed, for all who read the study: without a database's password."""
    return shlex.join(["steppe", *map(shown, sys.argv[1:])])


def _cores(device: str) -> int:
    """Return how many workers train at once without slowing each other down."""
    return len(os.sched_getaffinity(0)) if device == "cpu" else 1
