"""What ``steppe compare`` does: plan a study, train it, and report it."""

import os
import shlex
import sys
from pathlib import Path

from rich.console import Console

from steppe._shared.console import INTERRUPTED, make_console, refusals
from steppe._shared.credentials import shown
from steppe._shared.interrupts import ending_at_once
from steppe._shared.tables import print_text
from steppe.compare.cli.publish import PAGE, publish
from steppe.compare.execution.launch_group import launched_processes
from steppe.compare.execution.trial_queue import TrialQueue, open_queue
from steppe.compare.execution.worker_pool import WorkerPool, join_launch
from steppe.compare.planning.continuation import continue_study
from steppe.compare.planning.options import StudyOptions
from steppe.compare.planning.presets import Preset, find_preset, usual_for
from steppe.compare.planning.study import plan_study
from steppe.compare.records.results import StudyResults
from steppe.compare.report.headline import forewarnings
from steppe.compare.training.run import RunContext


def choose_preset(task: str | None, preset: str | None, scale: str) -> tuple[str, Preset]:
    """Return the task and the preset that a user's names mean; what is not named has a default.

    Raises
    ------
    ValueError
        There is no such preset.
    """
    if preset is None:
        name = task or "digits"
        return name, usual_for(name)
    published = find_preset(preset)
    return task or published.task_at(scale), published


def run_study(
    task: str,
    options: StudyOptions,
    preset: Preset,
    context: RunContext,
    *,
    exported: StudyResults | None = None,
    workers: int | None,
    storage: str,
    heartbeat: int,
    show: bool,
) -> None:
    """Plan a study, train what is left of it, and write its page.

    Parameters
    ----------
    task, options, preset, context
        See :func:`steppe.compare.planning.study.plan_study`.
    exported : StudyResults or None, default None
        A study to go on with, in the place of a new one.
    workers : int or None
        Processes that train here; None is one for each core on a CPU, else 1.
    storage : str
        Where the study is kept, as :func:`steppe.compare.execution.storage_names.parse_storage`
        reads it.
    heartbeat : int
        Seconds between a worker's signs of life.
    show : bool
        Whether to open the page in a browser.

    Raises
    ------
    SystemExit
        If the study cannot be planned, or not all of its trials have ended.
    """
    with refusals(), ending_at_once():
        launch = launched_processes(context)
        _check_workers(workers, launch.num_processes)
        if exported:
            study = continue_study(exported, context)
        else:
            study = plan_study(task, options, preset, context, command=_typed())
        if not launch.is_main_process:
            raise SystemExit(join_launch(study, context))
        queue = open_queue(study, storage, heartbeat, exported.trials if exported else ())
    console = make_console()
    for warning in forewarnings(queue.study.plan, changed=bool(queue.study.earlier_plans)):
        print_text(console, warning)
    pool = WorkerPool(queue, context, storage, heartbeat)
    if launch.num_processes > 1:
        with refusals():
            status = pool.train_in_launch(console)
    else:
        with refusals():
            status = pool.run(console, _cores(context.device) if workers is None else workers)
    _report(console, queue, context.out / PAGE, status, show=show)


def _check_workers(workers: int | None, launched: int) -> None:
    if workers is not None and launched > 1:
        raise ValueError(
            f"workers must be left out in a launch of {launched} processes, which train each trial "
            f"together, got {workers}"
        )


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
