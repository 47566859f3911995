"""Print the tables of a benchmark, and how to read them."""

from collections.abc import Container, Iterator, Sequence

import numpy as np
from rich.console import Console

from steppe._shared.messages import plural
from steppe._shared.tables import TextTable
from steppe.bench.bandwidth import Copy
from steppe.bench.benchmark import BenchmarkPlan, Outcome
from steppe.bench.disturbance import DISTURBED_RATIO, disturbed
from steppe.bench.failure import Failure
from steppe.bench.first_step import FirstStep
from steppe.bench.measurement import HOST_ROUNDS, Measurement
from steppe.bench.optimizers import BASELINE
from steppe.bench.shapes import MODELS

_MORE_COLUMNS = ("95 %\ninterval", "× least\ntraffic", "state\nB/param", "extra\nmemory")
_FEW = 50_000
_USUAL_DTYPE = "float32"
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
    if benchmark.not_installed:
        console.print(f"Not installed: {', '.join(benchmark.not_installed)}.", highlight=False)
    for note in _notes(benchmark, measured):
        console.print(note, highlight=False)


def described(model: str, numbers: int) -> str:
    """Return a model's name, and how many tensors and parameters it has."""
    count = f"{numbers / 1e6:.1f} M" if numbers > _FEW else f"{numbers}"
    return f"{model}: {plural(len(MODELS[model].shapes()), 'tensor')}, {count} parameters"


def _steps(found: Sequence[Measurement], doubtful: Container[Measurement]) -> TextTable:
    speeds = [one.bandwidth for one in found if one.bandwidth is not None]
    how = f"copies at {np.median(speeds) / 1e9:.1f} GB/s" if speeds else "host time, warm caches"
    table = TextTable(f"{described(found[0].model, found[0].numbers)}; {how}")
    unit, name = (1e3, "ms") if speeds else (1e6, "µs")
    baseline = BASELINE.name.replace("-", "-\n")  # the name of a peer takes the width
    for heading in ("engine", f"{name} per\nstep", f"× {baseline}", *_MORE_COLUMNS):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in found:
        table.add_row(
            f"{one.optimizer} †" if one in doubtful else one.optimizer,
            one.engine or "–",
            _short(unit * one.seconds),
            _short(one.ratio.value),
            f"{_short(one.ratio.low)}–{_short(one.ratio.high)}",
            "–" if one.excess is None else _short(one.excess),
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


def _notes(benchmark: BenchmarkPlan, measured: Sequence[Measurement]) -> Iterator[str]:
    """Yield how to read the tables, as far as the models asked for need it."""
    yield (
        f"Medians of {plural(benchmark.steps, 'step')} in turn with {BASELINE.name}'s, on "
        f"{plural(benchmark.threads, 'thread')}; the interval is 95 %, by bootstrap. The row of "
        f"{BASELINE.name} against itself shows the noise."
    )
    narrow = dict.fromkeys(one.optimizer for one in measured if one.dtype != _USUAL_DTYPE)
    if narrow:
        yield f"Parameters are in {_USUAL_DTYPE}, but in bfloat16 with {', '.join(narrow)}."
    is_host = {MODELS[model].is_host for model in benchmark.models}
    if False in is_host:
        yield (
            f"Before every step {Copy.moved >> 21} MiB are copied, which leaves cold caches. Least "
            "traffic is the time in which such a copy moves the bytes that a step must read or "
            "write: parameters twice, gradients once, state twice, as it is read and written. 1 is "
            "the speed of the copy. Where a model fits into caches, or a copy is not the fastest "
            "that memory can do, a step may take less."
        )
        yield "Extra memory is what a step takes while it runs, as a share of the parameters'."
    if True in is_host:
        yield (
            f"Host time is what a step takes until it returns, over tensors of a few numbers and "
            f"with warm caches: medians of {plural(HOST_ROUNDS * benchmark.steps, 'step')}."
        )
