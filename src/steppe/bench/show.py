"""Measure a benchmark with a bar on the terminal, print its tables and write its files."""

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from steppe._shared.console import INTERRUPTED, make_console, refusals
from steppe.bench.benchmark import BenchmarkPlan, Outcome, execute
from steppe.bench.failure import Failure
from steppe.bench.first_step import FirstStep
from steppe.bench.measurement import Measurement
from steppe.bench.optimizers import BASELINE
from steppe.bench.plot import plot
from steppe.bench.report import report
from steppe.bench.results import machine_line, write


def measure_and_report(benchmark: BenchmarkPlan, out: Path) -> None:
    """Measure all that is planned, print the tables, and write bench.json and bench.png.

    Parameters
    ----------
    benchmark : BenchmarkPlan
        What is measured.
    out : Path
        Directory of the files, which exists.

    Raises
    ------
    SystemExit
        It was interrupted, or a file cannot be written.
    """
    console = make_console()
    outcomes: list[Outcome] = list(benchmark.failures)
    try:
        _measure_all(console, benchmark, outcomes)
    except KeyboardInterrupt:
        report(console, benchmark, outcomes)
        console.print("\nInterrupted: nothing has been written.")
        raise SystemExit(INTERRUPTED) from None
    report(console, benchmark, outcomes)
    numbers, picture = out / "bench.json", out / "bench.png"
    with refusals():
        write(benchmark, outcomes, numbers)
        measured = [one for one in outcomes if isinstance(one, Measurement)]
        drawn = plot(measured, machine_line(benchmark), picture)
    console.print(f"\nNumbers: {numbers}", soft_wrap=True, highlight=False)
    if drawn:
        console.print(f"Picture: {picture}", soft_wrap=True, highlight=False)


def _measure_all(console: Console, benchmark: BenchmarkPlan, outcomes: list[Outcome]) -> None:
    """Fill ``outcomes`` one by one: a bar on a terminal, elsewhere a line for each."""
    blocks = benchmark.blocks()
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    # Not refreshed by itself: that would take time from what is measured.
    with Progress(
        *columns, console=console, auto_refresh=False, disable=not console.is_terminal
    ) as progress:
        bar = progress.add_task("", total=len(blocks))
        measuring = execute(benchmark)
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
