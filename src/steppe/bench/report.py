"""Print the tables of a benchmark, and how to read them."""

from collections.abc import Container, Sequence

import numpy as np
from rich.console import Console

from steppe._shared.messages import plural
from steppe._shared.tables import TextTable
from steppe.bench.bandwidth import Copy
from steppe.bench.benchmark import BenchmarkPlan, Outcome
from steppe.bench.disturbance import DISTURBED_RATIO, disturbed
from steppe.bench.failure import Failure
from steppe.bench.first_step import FirstStep
from steppe.bench.measurement import Measurement
from steppe.bench.optimizers import BASELINE
from steppe.bench.shapes import MODELS

_COLUMNS = (
    "engine",
    "ms per\nstep",
    f"×\n{BASELINE.name}",
    "95 %\ninterval",
    "× least\ntraffic",
    "state\nB/param",
    "extra\nmemory",
)
_DOUBTFUL = (
    f"The machine was busy with other work: {BASELINE.name} took more than {DISTURBED_RATIO} times "
    "as long as in the model's best block. Do not rely on these ratios; measure again on a machine "
    "at rest."
)


def report(console: Console, benchmark: BenchmarkPlan, outcomes: Sequence[Outcome]) -> None:
    """Print a table for each model, one for the first steps, and how to read them.

    Parameters
    ----------
    console : rich.console.Console
        The console to print on.
    benchmark : BenchmarkPlan
        The benchmark.
    outcomes : sequence
        The outcomes of its blocks so far.
    """
    measured = [one for one in outcomes if isinstance(one, Measurement)]
    doubtful = disturbed(measured)
    for model in benchmark.models:
        found = [one for one in measured if one.model == model]
        if found:
            console.print(_steps(found, doubtful))
    firsts = [one for one in outcomes if isinstance(one, FirstStep)]
    if firsts:
        console.print(_first_steps(firsts))
    for line in _failures(outcomes):
        console.print(line, highlight=False)
    if doubtful:
        console.print(f"† {_DOUBTFUL}", highlight=False)
    for note in _notes(benchmark):
        console.print(note, highlight=False)


def _steps(found: Sequence[Measurement], doubtful: Container[Measurement]) -> TextTable:
    model, numbers = found[0].model, found[0].numbers
    bandwidth = np.median([one.bandwidth for one in found])
    table = TextTable(
        f"{model}: {plural(len(MODELS[model]()), 'tensor')}, {numbers / 1e6:.1f} M parameters; "
        f"copies at {bandwidth / 1e9:.1f} GB/s"
    )
    for heading in _COLUMNS:
        table.add_column(heading, justify="right", no_wrap=True)
    for one in found:
        table.add_row(
            f"{one.optimizer} †" if one in doubtful else one.optimizer,
            one.engine or "–",
            _short(1e3 * one.seconds),
            _short(one.ratio.value),
            f"{_short(one.ratio.low)}–{_short(one.ratio.high)}",
            _short(one.excess),
            f"{one.state_per_number:.1f}",
            "–" if one.extra is None else f"{100 * one.extra:.1f} %",
        )
    return table


def _short(value: float) -> str:
    """Return a number with two decimals below 100 and with none above."""
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _first_steps(found: Sequence[FirstStep]) -> TextTable:
    table = TextTable("First step in a new process, ms")
    table.add_column("compiling", justify="right")
    table.add_column("cached", justify="right")
    for one in found:
        table.add_row(one.optimizer, f"{1e3 * one.compiling:.0f}", f"{1e3 * one.cached:.0f}")
    return table


def _failures(outcomes: Sequence[Outcome]) -> list[str]:
    """Return a line for each reason, with all blocks that it was met in."""
    blocks: dict[tuple[str, str], list[str]] = {}
    for one in outcomes:
        if isinstance(one, Failure):
            blocks.setdefault((one.optimizer, one.reason), []).append(one.block)
    return [
        f"Not measured: {name} ({', '.join(where)}): {reason}"
        for (name, reason), where in blocks.items()
    ]


def _notes(benchmark: BenchmarkPlan) -> list[str]:
    return [
        f"Medians of {plural(benchmark.steps, 'step')} in turn with {BASELINE.name}'s, on "
        f"{plural(benchmark.threads, 'thread')}; the interval is 95 %, by bootstrap. Before every "
        f"step {Copy.moved >> 21} MiB are copied, which leaves cold caches.",
        "Least traffic is what a step must read and write at the speed of that copy. Where a model "
        "fits into caches, or a copy is not the fastest that memory can do, a step may take less.",
        "Extra memory is what a step takes while it runs, as a share of the parameters'.",
    ]
