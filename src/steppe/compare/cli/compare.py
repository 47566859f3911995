"""The command ``steppe compare``: its options, and their checks that need no torch."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

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
from steppe._shared.console import refusals
from steppe._shared.interrupts import ending_at_once
from steppe.compare.execution.storage_names import FILE
from steppe.compare.execution.study_storage import HEARTBEAT
from steppe.compare.planning.options import STUDY, StudyOptions, check_where
from steppe.compare.records.choices import (
    PRESET_NAMES,
    TASK_NAMES,
    check_preset,
    check_task,
    directory_of,
)
from steppe.compare.records.task_modifiers import spelled

TaskName = Annotated[
    str | None,
    Parameter(
        help=f"What to train on: {', '.join(TASK_NAMES)}; or a Task of your own, as mytask.py:task "
        "or package.module:task; with +noise40 appended to give 40 % of the labels for training "
        "and validation another class, +few250 to train on 250 samples, +shift to test on "
        "corrupted inputs, +batch1024 for that batch size, and +long4 for four times the epochs. "
        "Default: the preset's, or digits."
    ),
]
PresetName = Annotated[
    str | None,
    STUDY,
    Parameter(
        metavar="NAME", help=f"A paper's optimizers and settings: {', '.join(PRESET_NAMES)}."
    ),
]
Continue = Annotated[
    Path | None,
    STUDY,
    Parameter(
        "--continue",
        metavar="FILE",
        help="Go on with the study whose trials steppe report --json has written to this file, "
        "here or on another machine. The file says what is compared: leave task (but one of your "
        "own), preset and the options of the study, the model, training and hyperparameters out.",
    ),
]
Workers = Annotated[
    int | None,
    WHERE,
    limited(NOT_NEGATIVE),
    Parameter(
        help="Processes that train here, each a trial of its own; 0 plans, and waits for workers "
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
    continued: Continue = None,
    device: Device = "cpu",
    threads: Threads = 1,
    workers: Workers = None,
    storage: Storage = None,
    heartbeat: Heartbeat = HEARTBEAT,
    out_dir: OutDir = None,
    data: Data = None,
    track: Track = "",
    checkpoints: Checkpoints = "recommended",
    show: Open = False,
) -> None:
    """Compare what optimizers are worth when tuned alike, and say which differences are real.

    Every optimizer has the same number of independent trials: random settings in its own search
    space, each with a seed of its own. From them follows the test result that a user gets who tries
    --budget settings and takes the best by validation. All start from the same weights and see the
    data in the same order, trial by trial. Ctrl-C, or a kill, keeps what has finished, and the
    same command goes on from the last epoch. The result is a page that can be sent to a colleague.

    Examples
    --------
    Two optimizers on handwritten digits, in about a minute:

        steppe compare digits --optimizers adamw,dualadam --budget 2 --trials 12

    A paper's comparison, at a size for two CPU cores:

        steppe compare --preset critical-momenta --scale small

    Each trial on all devices of this machine:

        accelerate launch -m steppe compare cifar10 --device cuda
    """
    with refusals(), ending_at_once():
        task = _checked_names(task, preset)
        options.check()
        check_where(threads, track)
        NOT_NEGATIVE.check("workers", workers)
        own = task if task and ":" in task else ""
        if continued is not None:
            _check_continued(task, own, (preset, options) != (None, _DEFAULTS))
        # Imported here because torch takes two seconds: help and misspelt options do without.
        from steppe.compare.cli.run_study import choose_preset, run_study
        from steppe.compare.records.results import load
        from steppe.compare.training.run import RunContext

        exported = None if continued is None else load(continued)
        seed = exported.plan.study_seed if exported else options.study_seed
        wanted = exported.task if exported and not own else task
        if exported and not exported.setup.get("source"):
            check_task(exported.task)
        name, published = choose_preset(wanted, preset, options.scale)
        label = directory_of(name)
    out_dir = out_dir or Path("results", f"{label}-{seed}" if seed else label)
    run_study(
        name,
        options,
        published,
        RunContext(out_dir, device, threads, data, track, checkpoints, own),
        exported=exported,
        workers=workers,
        storage=storage or str(out_dir / FILE),
        heartbeat=heartbeat,
        show=show,
    )


def _checked_names(task: str | None, preset: str | None) -> str | None:
    """Return the task's name, with its modifiers in their own order."""
    if preset is not None:
        check_preset(preset)
    if task is None:
        return None
    check_task(task)
    return spelled(task)


def _check_continued(task: str | None, own: str, has_options: bool) -> None:
    if has_options:
        raise ValueError("continue takes the study from its file: leave its options out")
    if task and not own:
        raise ValueError("continue takes the task from its file: leave it out")
