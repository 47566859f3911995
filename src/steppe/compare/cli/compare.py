"""The command ``steppe compare``."""

import os
import re
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from steppe._shared.cli_options import Checkpoints, Data, Device, Heartbeat, Open, Storage, Track
from steppe._shared.console import INTERRUPTED, make_console, refusals
from steppe.compare.cli.report import PAGE, publish
from steppe.compare.execution.launch_group import launched_processes
from steppe.compare.execution.stored_studies import save_study
from steppe.compare.execution.study_storage import FILE, HEARTBEAT, open_storage
from steppe.compare.execution.trial_queue import TrialQueue
from steppe.compare.execution.worker_pool import WorkerPool, join_launch
from steppe.compare.planning.presets import PRESETS, find_preset, usual_for
from steppe.compare.planning.study import Options, plan
from steppe.compare.report.terminal import print_report
from steppe.compare.tasks import TASKS, find_task
from steppe.compare.training.run import RunContext

_TASKS = ", ".join(TASKS)
_PRESETS = ", ".join(PRESETS)


def compare(
    task: Annotated[
        str | None, typer.Argument(help=f"{_TASKS}. Default: the preset's, or digits.")
    ] = None,
    optimizers: Annotated[
        str | None,
        typer.Option(
            help="Names with commas between: of steppe, of torch.optim, adabelief, adabound, adan "
            "and lion of pytorch_optimizer, a variant such as dualadam-scale-free or adamcm-int8 "
            "(state in 8 bits; -bf16 in bfloat16; the same of dualadam), or package.module:Class; "
            "each may end in +sam (SAM around it) or +warmup (lr rises linearly until DualAdam's "
            "switch). The first is the baseline. Controls come along: adam+warmup with what "
            "switches, adam+2lr (Adam at twice its lr) with critical momenta."
        ),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help=f"A paper's optimizers and settings: {_PRESETS}.")
    ] = None,
    scale: Annotated[
        str, typer.Option(help="full, or small: data and epochs for two cores.")
    ] = "full",
    budget: Annotated[
        int | None,
        typer.Option(
            help="Tuning trials of each optimizer, over its own declared space; the first is its "
            "default. 0: nothing is tuned. Default: 8, or the preset's."
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            help="Fresh seeds that each optimizer's best setting runs on. Default: 5, or "
            "the preset's."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="A network. Of finetune: smollm2, a directory, or a name on the Hugging Face hub, "
            "each also with +lora. Default: the task's."
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Default: the task's.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Default: the task's.")] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            help="Training samples; sequences of text; images of each task of a stream. Default: "
            "what the scale says."
        ),
    ] = None,
    length: Annotated[
        int | None, typer.Option(help="Tokens of a sequence of text. Default: the task's.")
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="For every optimizer, instead of searching it.")
    ] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help="For every optimizer, instead of searching it.")
    ] = None,
    switch_rate: Annotated[
        float | None,
        typer.Option(
            help="DualAdam's ξ, instead of searching it: its switch and +warmup end after 1/ξ "
            "steps. The published 8e-5 is 12 500 steps, 16 % of a 200-epoch run."
        ),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            help="Of lr: constant, cosine (to a thousandth, by steps) or cosine-epochs. Default: "
            "the preset's, or cosine; of streams constant."
        ),
    ] = None,
    warmup: Annotated[
        float, typer.Option(help="Share of the run over which lr rises, for every optimizer.")
    ] = 0.0,
    precision: Annotated[
        str | None,
        typer.Option(
            help="Of autocast: no, bf16 or fp16. Default: the preset's, or no; of finetune bf16."
        ),
    ] = None,
    accumulate: Annotated[
        int, typer.Option(help="Parts that a batch is cut into, to save memory.")
    ] = 1,
    clip: Annotated[
        float | None, typer.Option(help="Largest norm of the gradient. Default: any.")
    ] = None,
    device: Device = "cpu",
    threads: Annotated[int, typer.Option(help="CPU threads of each worker.")] = 1,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Processes that train here, each a trial of its own; 0 only plans, for workers "
            "elsewhere. Default: one for each core on a CPU, else 1. Not for a distributed launch, "
            "whose processes train each trial together."
        ),
    ] = None,
    storage: Storage = None,
    heartbeat: Heartbeat = HEARTBEAT,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Directory of the study, its page and its checkpoints. Default: results/TASK."
        ),
    ] = None,
    data: Data = None,
    track: Track = "",
    checkpoints: Checkpoints = True,
    show: Open = False,
) -> None:
    """Tune optimizers alike, repeat them over seeds, and say which differences are real.

    Every optimizer gets the same number of tuning trials, scored on validation data; its best
    setting is trained on fresh seeds, and tested once. All start from the same weights and see the
    data in the same order, seed by seed. Ctrl-C, or a kill, keeps what has finished, and the same
    command goes on from the last epoch. At the end stands a page that can be sent to a colleague.
    accelerate launch -m steppe compare … trains each trial on several devices.
    """
    with refusals():
        name = task or (find_preset(preset).task_at(scale) if preset else "digits")
        published = find_preset(preset) if preset else usual_for(name)
        find_task(name)
        out = Path("results", name) if out is None else out
        if workers is not None and workers < 0:
            raise ValueError(f"workers must be at least 0, got {workers}")
        place = RunContext(out, device, threads, data, track, checkpoints)
        options = Options(
            optimizers=optimizers.split(",") if optimizers else None,
            scale=scale,
            model=model,
            epochs=epochs,
            batch_size=batch_size,
            samples=samples,
            length=length,
            budget=budget,
            seeds=seeds,
            lr=lr,
            weight_decay=weight_decay,
            switch_rate=switch_rate,
            accumulate=accumulate,
            precision=precision,  # type: ignore[arg-type]  # plan checks it
            clip=clip,
            schedule=schedule,  # type: ignore[arg-type]
            warmup=warmup,
        )
        launch = launched_processes(place)
        if workers is not None and launch.num_processes > 1:
            raise ValueError(
                f"workers must be left out in a launch of {launch.num_processes} processes, which "
                f"train each trial together, got {workers}"
            )
        study = plan(name, options, published, place, command=_typed())
        if not launch.is_main_process:
            raise typer.Exit(join_launch(study, place))
        where = storage or str(out / FILE)
        opened = open_storage(where, heartbeat=heartbeat, create=True)
        save_study(opened, study)
        queue = TrialQueue(opened, study)
    console = make_console()
    pool = WorkerPool(queue, place, where, heartbeat)
    if launch.num_processes > 1:
        with refusals():
            status = pool.train_in_launch(console)
    else:
        status = pool.run(console, _cores(device) if workers is None else workers)
    results = queue.results()
    print_report(console, results)
    with refusals():
        publish(console, results, out / PAGE, show=show)
    if status:
        why = "Interrupted" if status == INTERRUPTED else "No worker is left"
        console.print(f"{why}. What has finished is kept: run again to go on.")
        raise typer.Exit(status)


def _typed() -> str:
    """Return what was typed, for all who read the study: without a database's password."""
    typed = shlex.join(["steppe", *sys.argv[1:]])
    return re.sub(r"(://[^:/@\s]+):[^@\s]+@", r"\1:…@", typed)


def _cores(device: str) -> int:
    """Count the workers that do not get in each other's way."""
    return len(os.sched_getaffinity(0)) if device == "cpu" else 1
