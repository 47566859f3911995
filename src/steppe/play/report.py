"""Print the table of a sweep, and how to read it; the page shows the same cells and footnotes."""

from collections import Counter

from rich.console import Console

from steppe._shared.messages import plural
from steppe._shared.tables import TextTable, print_text
from steppe.play.end_points import DIVERGED, GLOBAL, NONE, OTHER, arrival_radius
from steppe.play.results import OptimizerResult, SweepResult

COLUMNS = (
    "lr",
    "global\nminimum",
    "another\nminimum",
    "none",
    "diverged",
    "median\nfinal loss",
    "mean steps\nto arrive",
)


def report(console: Console, result: SweepResult) -> None:
    """Print a table with a line for each optimizer, and its footnotes."""
    table = TextTable(heading(result))
    for column in COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for optimizer in result.optimizers:
        table.add_row(optimizer.name, *table_cells(result, optimizer))
    console.print(table)
    for note in footnotes(result):
        print_text(console, note)


def heading(result: SweepResult) -> str:
    """Return function, starts, steps, schedule and noise in one line."""
    with_noise = f", noise {result.noise:g}" if result.noise else ""
    starts = plural(len(result.starts), "start")
    steps = plural(result.steps, "step")
    return f"{title(result)}: {starts}, {steps}, {result.schedule} lr{with_noise}"


def title(result: SweepResult) -> str:
    """Return the function's name with its parameters."""
    parameters = ", ".join(f"{name} {value:g}" for name, value in result.parameters.items())
    return f"{result.function.name} ({parameters})" if parameters else result.function.name


def table_cells(result: SweepResult, optimizer: OptimizerResult) -> list[str]:
    """Return an optimizer's row as texts, one for each of ``COLUMNS``."""
    return [
        f"{optimizer.lr:g}",
        _arrivals(result, optimizer),
        str(optimizer.count(OTHER)),
        str(optimizer.count(NONE)),
        str(optimizer.count(DIVERGED)),
        f"{optimizer.loss:.4g}",
        f"{optimizer.arrival:.0f}" if optimizer.count(GLOBAL) else "–",
    ]


def footnotes(result: SweepResult) -> list[str]:
    """Return sentences that tell how the runs were made and counted."""
    wide = f"{arrival_radius(result.function):.2g}"
    rates = ", ".join(f"{lr:g}" for lr in result.rates)
    falling = ", falling to 0 along a cosine" if result.schedule == "cosine" else ""
    sentences = [
        f"Every optimizer ran at lr {rates}{falling}, and is shown at its own best by median final "
        "loss.",
        f"A minimum is reached by ending within {wide} of it (0.5 % of the domain’s diagonal); "
        "arrival is when a run stays so near a global one.",
    ]
    if at_edge := [f"{each.name} {each.lr:g}" for each in result.optimizers if each.is_at_edge]:
        sentences.append(
            "The best lr is the lowest or highest that was tried, so a better one may lie beyond: "
            f"{', '.join(at_edge)}."
        )
    if any("+sam" in optimizer.name for optimizer in result.optimizers):
        sentences.append("SAM takes two gradients in each step.")
    lowest = _global_minima(result)
    if len(lowest) > 1:
        places = ", ".join(_point_text(point) for point in lowest)
        sentences.append(f"Global minima, in the order of the sums: {places}.")
    return sentences


def _global_minima(result: SweepResult) -> list[tuple[float, ...]]:
    return [minimum.point for minimum in result.function.minima if minimum.is_global]


def _arrivals(result: SweepResult, optimizer: OptimizerResult) -> str:
    """Return how many runs reached a global minimum, minimum by minimum if there are several."""
    total, lowest = str(optimizer.count(GLOBAL)), _global_minima(result)
    if len(lowest) == 1:
        return total
    at = Counter(end.minimum for end in optimizer.end_points)
    return f"{total} = {' + '.join(str(at[point]) for point in lowest)}"


def _point_text(point: tuple[float, ...]) -> str:
    numbers = ", ".join(f"{x:.4g}" for x in point)
    return f"({numbers})" if len(point) > 1 else numbers
