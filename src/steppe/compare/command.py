"""The commands ``steppe compare`` and ``steppe doctor``."""

import sqlite3
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from steppe.commands.console import FAILED, INTERRUPTED, fail, make_console, refusals
from steppe.commands.wording import first_line
from steppe.compare.doctor import doctor as print_doctor
from steppe.compare.optimizers import DEFAULT
from steppe.compare.plots import plot_curves
from steppe.compare.report import report
from steppe.compare.results import FILE, Results
from steppe.compare.run import Outcome, Run
from steppe.compare.study import Study, execute, plan
from steppe.compare.summary import Finished


def compare(
    task: Annotated[str, typer.Argument(help="digits, mnist-5k or fashion-mnist.")] = "digits",
    optimizers: Annotated[
        str,
        typer.Option(
            help="Names with commas between: of steppe, of torch.optim, a preset such as "
            "dualadam-scale-free or adamcm-int8 (state in 8 bits; -bf16 in bfloat16; the same of "
            "dualadam), or package.module:Class; each may end in +sam (SAM around it) or +warmup "
            "(lr rises linearly until DualAdam's switch). The first is the baseline. What switches "
            "brings the same with a warm-up instead along, as its control."
        ),
    ] = ",".join(DEFAULT),
    seeds: Annotated[int, typer.Option(help="How often to repeat everything.")] = 3,
    epochs: Annotated[int | None, typer.Option(help="Default: the task's.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Default: the task's.")] = None,
    lr: Annotated[
        float | None, typer.Option(help="For every optimizer. Default: each one's own default.")
    ] = None,
    switch_rate: Annotated[
        float | None,
        typer.Option(
            help="DualAdam's ξ; its switch and +warmup end after 1/ξ steps. The published 8e-5 is "
            "12 500 steps, 16 % of a 200-epoch run, and would never switch in a short one. "
            "Default: 16 % of this run's steps."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="A torch device, such as cuda.")] = "cpu",
    threads: Annotated[int | None, typer.Option(help="CPU threads. Default: the task's.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Directory of results.sqlite and the curves. Runs that are in it with the same "
            "settings and source code are not run again. Default: results/TASK."
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Directory of fashion-mnist's four .gz files.")
    ] = None,
) -> None:
    """Train optimizers on real data from the same starts, and print what came out.

    All have weight decay 0, the same initial weights and the same data order for each seed. Ctrl-C
    keeps what has finished; the same command again goes on from there.
    """
    out = Path("results", task) if out is None else out
    with refusals():
        study = plan(
            task,
            optimizers.split(","),
            seeds=seeds,
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
            switch_rate=switch_rate,
            device=device,
            threads=threads,
            data=data,
        )
        results = Results(out)
    _show(study, results, out)


def doctor() -> None:
    """Print versions, devices, and which engine each optimizer would use."""
    print_doctor(make_console())


def _show(study: Study, results: Results, out: Path) -> None:
    console = make_console()
    finished: dict[str, dict[int, Outcome]] = {recipe.name: {} for recipe in study.recipes}
    stopped: KeyboardInterrupt | sqlite3.Error | None = None
    try:
        _run_all(console, study, results, finished)
    except (KeyboardInterrupt, sqlite3.Error) as reason:
        stopped = reason
    finally:
        results.close()

    report(console, study, finished)
    picture = _drawn(study, finished, out)
    if isinstance(stopped, sqlite3.Error):
        fail(f"{out / FILE} cannot be used any more: {stopped}", FAILED)
    if stopped is not None:
        console.print(f"\nInterrupted. What has finished is kept in {out}: run again to go on.")
        raise typer.Exit(INTERRUPTED)
    console.print(f"\nResults: {out / FILE}", soft_wrap=True, highlight=False)
    if picture is not None:
        console.print(f"Curves: {picture}", soft_wrap=True, highlight=False)


def _drawn(study: Study, finished: Finished, out: Path) -> Path | None:
    """Draw the curves and say where; None if nothing can be drawn: the table stands without."""
    task = study.setup.task.name
    picture = out / f"curves-{task}.png"
    try:
        drawn = plot_curves(finished, f"{task}: mean and range over seeds", picture)
    except OSError as error:
        typer.echo(f"steppe: no curves drawn in {picture}: {first_line(error)}", err=True)
        return None
    return picture if drawn else None


def _run_all(
    console: Console, study: Study, results: Results, finished: dict[str, dict[int, Outcome]]
) -> None:
    """Fill ``finished`` run by run: a bar on a terminal, elsewhere a line for each."""
    count, epochs = len(study.runs()), study.setup.epochs
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("starting", total=count * epochs)

        def on_epoch(run: Run) -> None:
            progress.update(bar, description=_named(run, study), advance=1)

        for done, (run, outcome, known) in enumerate(execute(study, results, on_epoch), start=1):
            finished[run.recipe.name][run.seed] = outcome
            progress.update(bar, completed=done * epochs)
            if not console.is_terminal:
                line = f"[{done}/{count}] {_named(run, study)}: {_came_to(outcome)}"
                console.out(f"{line} (kept)" if known else line, highlight=False)


def _named(run: Run, study: Study) -> str:
    return f"{run.recipe.name}, seed {run.seed + 1} of {study.seeds}"


def _came_to(outcome: Outcome) -> str:
    if outcome.diverged:
        return "diverged"
    final = outcome.final
    return f"test accuracy {final.test_accuracy:.2%}, test loss {final.test_loss:.4f}"
