"""Run a comparison from Python: of a task in a file, or one that was made a moment ago."""

import warnings
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from steppe._shared.console import make_console
from steppe._shared.contender import Contender
from steppe._shared.interrupts import StoppedError
from steppe._shared.progress import progress
from steppe._shared.recipes import content_of, find_recipe, named
from steppe._shared.source_hash import noting_changes
from steppe._shared.user_files import refuse_while_importing
from steppe.compare.execution.storage_names import FILE
from steppe.compare.execution.study_storage import HEARTBEAT
from steppe.compare.execution.trial_queue import Assignment, TrialQueue, open_queue
from steppe.compare.execution.worker import work
from steppe.compare.execution.worker_pool import WorkerPool
from steppe.compare.planning.options import StudyOptions
from steppe.compare.planning.presets import USUAL, usual_for
from steppe.compare.planning.study import plan_study
from steppe.compare.python.study import Study
from steppe.compare.records.choices import directory_of
from steppe.compare.records.task_modifiers import spelled
from steppe.compare.report.headline import forewarnings
from steppe.compare.tasks.source import TaskSource, find_task, task_content
from steppe.compare.tasks.task import Task
from steppe.compare.training.run import RunContext


def run(
    task: Task | str,
    optimizers: Sequence[str | Contender] | None = None,
    *,
    out_dir: str | PathLike[str] | None = None,
    workers: int | None = None,
    device: str = "cpu",
    threads: int = 1,
    checkpoints: Literal["recommended", "all"] | None = "recommended",
    **options: Any,
) -> Study:
    """Compare what optimizers are worth on a task when tuned alike, as ``steppe compare`` does.

    What has finished is kept in ``out_dir``: the same call again goes on from there, and so does
    ``steppe compare`` if the task is in a file.

    Parameters
    ----------
    task : Task or str
        The task, or its name: one of steppe's, or ``mytask.py:task``, with modifiers such as
        ``+noise40`` or without.
    optimizers : sequence of str or Contender, optional
        The first is the baseline. Names are those of ``steppe compare --optimizers``. Default:
        AdamW, DualAdam, AdamCM, and AdamW with SAM.
    out_dir : str or path, optional
        Directory of the study. Default: ``results/NAME``, by the task's name.
    workers : int, optional
        Processes that train at once, which need a task and optimizers that have names. Default:
        trials are trained one after the other in this process.
    device : str, default "cpu"
        A torch device.
    threads : int, default 1
        CPU threads of each process.
    checkpoints : "recommended", "all" or None, default "recommended"
        Which runs' weights are kept in ``out_dir/checkpoints``: those at the recommended settings,
        or all, or none.
    **options
        What else :class:`~steppe.compare.planning.options.StudyOptions` has: ``budget``,
        ``trials``, ``primary``, ``study_seed``, ``scale``, ``epochs``, ``batch_size``, ``lr`` and
        so on, as ``steppe compare --help`` explains them.

    Returns
    -------
    Study
        On Ctrl-C the study so far, with ``complete=False``.

    Raises
    ------
    ValueError
        An option is out of its range, or the task or an optimizer cannot be trained with.
    TypeError
        There is no such option, or several processes cannot find the task.
    RuntimeError
        It is called while a task's file is imported.

    Warns
    -----
    UserWarning
        There can be no verdicts: the trials are too few, or results could be seen under another
        plan.

    Examples
    --------
    >>> import torch
    >>> from steppe.compare import Task, run
    >>> points = torch.linspace(-1, 1, 60)[:, None]
    >>> task = Task(name="line", model=lambda: torch.nn.Linear(1, 1), train=(points, 2 * points),
    ...             validation=0.3, test=0.3, loss=torch.nn.functional.mse_loss, epochs=2)
    >>> from tempfile import mkdtemp
    >>> run(task, ["sgd"], budget=1, trials=3, out_dir=mkdtemp()).complete
    True
    """
    refuse_while_importing("steppe.compare.run")
    compared = StudyOptions(
        optimizers=None if optimizers is None else [named(each) for each in optimizers], **options
    )
    if workers is not None:
        _check_named(task, optimizers or (), workers)
    name = spelled(task) if isinstance(task, str) else task.name
    out = Path("results", directory_of(name)) if out_dir is None else Path(out_dir)
    # Hashed once: what it computes with may change while it trains, as counters do.
    source: TaskSource | str = find_task(task) if isinstance(task, Task) else task
    own_task = "" if _is_known(task) else source
    context = RunContext(out, device, threads, checkpoints=checkpoints, task=own_task)
    preset = usual_for(name) if _is_known(task) else USUAL
    own = [each for each in optimizers or () if isinstance(each, Contender)]
    held = {find_recipe(each.name).source: content_of(each) for each in own}
    if isinstance(source, TaskSource):
        held[source.source] = task_content(source.task())
    with noting_changes(held):
        study = plan_study(source, compared, preset, context)
        storage = str(out / FILE)
        queue = open_queue(study, storage, HEARTBEAT)
        for warning in forewarnings(queue.study.plan, changed=bool(queue.study.earlier_plans)):
            warnings.warn(warning, stacklevel=2)
        if workers is not None:
            WorkerPool(queue, context, storage, HEARTBEAT).run(make_console(), workers)
        else:
            _train_here(queue, context)
        return Study(queue.results())


def _is_known(task: Task | str) -> bool:
    return isinstance(task, str) and ":" not in task


def _train_here(queue: TrialQueue, context: RunContext) -> None:
    left = queue.trial_count() - queue.progress()[0]
    with progress("Trials", left) as advance:

        def on_trial(assignment: Assignment, how: str) -> None:
            advance(1)

        try:
            work(queue.storage, queue.study, context, on_trial)
        except StoppedError:
            # What has finished is kept.
            return


def _check_named(task: Task | str, optimizers: Sequence[str | Contender], workers: int) -> None:
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise ValueError(f"workers={workers!r} must be an integer of at least 1, or None")
    if not isinstance(task, str):
        raise TypeError(
            "other processes import the task by its name: put it into a file, and name it, as "
            "'mytask.py:task', or leave workers out"
        )
    if not all(isinstance(each, str) for each in optimizers):
        raise TypeError(
            "other processes import the optimizers by their names: put a Contender into a file, "
            "and name it, as 'mytask.py:mine', or leave workers out"
        )
