"""The command ``steppe bench``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from steppe._shared.cli_options import AT_LEAST_ONE, NAMES, OUTPUT, WHERE, Count, Device, limited
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
    *models: Annotated[str, Parameter(metavar="MODEL")],
    optimizers: Annotated[Sequence[str] | None, NAMES] = None,
    steps: Annotated[int, limited(AT_LEAST_ONE)] = 20,
    device: Device = "cpu",
    threads: Annotated[Count, WHERE] = None,
    out_dir: Annotated[Path, OUTPUT, Parameter(metavar="DIR")] = Path("results", "bench"),
) -> None:
    """Time optimizers' steps against torch's fused AdamW and the memory's speed.

    Leave the machine alone meanwhile: AdamW against itself shows how much noise there is, and
    disturbed measurements are marked. The first steps are taken in processes of their own, with
    empty kernel caches and then with full ones.

    Parameters
    ----------
    models
        Models whose tensors are stepped: resnet18 (62 tensors, 11.7 M parameters), gpt2 (148,
        124 M), small (10 000 tensors of 100). gpt2 takes up to 8 GB and some minutes. Default:
        resnet18 small.
    optimizers
        Names with commas between: a preset such as dualadam-int8, a class of steppe or torch.optim,
        or package.module:Class. Default: AdamW fused, foreach and as a loop, all presets, and
        pytorch_optimizer's DualAdam if it is installed.
    steps
        Number of steps of each that are timed.
    threads
        CPU threads. Default: torch's.
    out_dir
        Directory of bench.json and bench.png.

    Examples
    --------
    State in 8 bits against state in full precision:

        steppe bench resnet18 --optimizers dualadam,dualadam-int8
    """
    with refusals():
        setup = plan(
            models or ("resnet18", "small"),
            None if optimizers is None else list(optimizers),
            steps=steps,
            device=device,
            threads=threads,
        )
        out_dir.mkdir(parents=True, exist_ok=True)
    _show(setup, out_dir)


def _show(setup: BenchmarkPlan, out: Path) -> None:
    console = make_console()
    outcomes: list[Outcome] = []
    try:
        _measure_all(console, setup, outcomes)
    except KeyboardInterrupt:
        report(console, setup, outcomes)
        console.print("\nInterrupted: nothing has been written.")
        raise SystemExit(INTERRUPTED) from None
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
