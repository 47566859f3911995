"""The command ``steppe bench``."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from steppe._shared.console import INTERRUPTED, make_console, refusals
from steppe.bench.benchmark import BenchmarkPlan, Outcome, execute, plan
from steppe.bench.failure import Failure
from steppe.bench.first_step import FirstStep
from steppe.bench.measured import BASELINE
from steppe.bench.measurement import Measurement
from steppe.bench.plot import plot
from steppe.bench.report import report
from steppe.bench.results import write


def bench(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL",
            help="Whose tensors to step: resnet18 (62 tensors, 11.7 M parameters), gpt2 (148, "
            "124 M), small (10 000 tensors of 100). gpt2 takes up to 8 GB and some minutes. "
            "Default: resnet18 small.",
        ),
    ] = None,
    optimizers: Annotated[
        str | None,
        typer.Option(
            help="Names with commas between: a preset such as dualadam-int8, a class of steppe or "
            "torch.optim, or package.module:Class. Default: AdamW fused, foreach and as a loop, "
            "all presets, and pytorch_optimizer's DualAdam if it is installed."
        ),
    ] = None,
    steps: Annotated[int, typer.Option(help="How many steps of each are timed.")] = 20,
    device: Annotated[str, typer.Option(help="A torch device, such as cuda.")] = "cpu",
    threads: Annotated[int | None, typer.Option(help="CPU threads. Default: torch's.")] = None,
    out: Annotated[Path, typer.Option(help="Directory of bench.json and bench.png.")] = Path(
        "results", "bench"
    ),
) -> None:
    """Time optimizers' steps in turn with torch's fused AdamW, and against memory's own speed.

    Leave the machine alone meanwhile: AdamW against itself shows how much noise there is, and what
    was disturbed is marked. The first steps are taken in processes of
    their own, with empty caches and then with what those have left.
    """
    with refusals():
        setup = plan(
            ("resnet18", "small") if models is None else models,
            None if optimizers is None else optimizers.split(","),
            steps=steps,
            device=device,
            threads=threads,
        )
        out.mkdir(parents=True, exist_ok=True)
    _show(setup, out)


def _show(setup: BenchmarkPlan, out: Path) -> None:
    console = make_console()
    outcomes: list[Outcome] = []
    try:
        _measure_all(console, setup, outcomes)
    except KeyboardInterrupt:
        report(console, setup, outcomes)
        console.print("\nInterrupted: nothing has been written.")
        raise typer.Exit(INTERRUPTED) from None
    report(console, setup, outcomes)
    numbers, picture = out / "bench.json", out / "bench.png"
    with refusals():
        write(setup, outcomes, numbers)
        drawn = plot([one for one in outcomes if isinstance(one, Measurement)], picture)
    console.print(f"\nNumbers: {numbers}", soft_wrap=True, highlight=False)
    if drawn:
        console.print(f"Picture: {picture}", soft_wrap=True, highlight=False)


def _measure_all(console: Console, setup: BenchmarkPlan, outcomes: list[Outcome]) -> None:
    """Fill ``outcomes`` one by one: a bar on a terminal, elsewhere a line for each."""
    blocks = setup.blocks()
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    # Not refreshed by itself: that would take time from what is measured.
    with Progress(
        *columns, console=console, auto_refresh=False, disable=not console.is_terminal
    ) as progress:
        bar = progress.add_task("", total=len(blocks))
        measuring = execute(setup)
        for done, (block, contender) in enumerate(blocks, start=1):
            name = f"{block}, {contender.name}"
            progress.update(bar, description=name, completed=done - 1, refresh=True)
            outcome = next(measuring)
            outcomes.append(outcome)
            if not console.is_terminal:
                console.out(f"[{done}/{len(blocks)}] {name}: {_came_to(outcome)}", highlight=False)


def _came_to(outcome: Outcome) -> str:
    match outcome:
        case Measurement():
            return f"{outcome.ratio.value:.2f} × {BASELINE.name}"
        case FirstStep():
            return f"{1e3 * outcome.compiling:.0f} ms, cached {1e3 * outcome.cached:.0f} ms"
        case Failure():
            return f"not measured: {outcome.reason}"
