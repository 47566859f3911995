"""The table in the terminal, and how to read it."""

from collections import Counter

from rich.console import Console

from steppe._shared.plurals import many
from steppe._shared.tables import new_table
from steppe.play.end_points import DIVERGED, GLOBAL, NONE, OTHER, reach
from steppe.play.results import Play, Player

COLUMNS = (
    "lr",
    "global\nminimum",
    "another\nminimum",
    "none",
    "diverged",
    "median\nfinal loss",
    "mean steps\nto arrive",
)


def report(console: Console, play: Play) -> None:
    """Print where each optimizer's starts led."""
    table = new_table(heading(play))
    for column in COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for player in play.players:
        table.add_row(player.name, *cells(play, player))
    console.print(table)
    for note in notes(play):
        console.print(note, highlight=False, markup=False)


def heading(play: Play) -> str:
    """Say what was played, in one line."""
    with_noise = f", noise {play.noise:g}" if play.noise else ""
    starts = many(len(play.starts), "start")
    steps = many(play.steps, "step")
    return f"{title(play)}: {starts}, {steps}, {play.schedule} lr{with_noise}"


def title(play: Play) -> str:
    """Name the function, with what it was made with."""
    made = ", ".join(f"{name} {value:g}" for name, value in play.parameters.items())
    return f"{play.function.name} ({made})" if made else play.function.name


def cells(play: Play, player: Player) -> list[str]:
    """Write an optimizer's line, a text for each of ``COLUMNS``."""
    return [
        f"{player.lr:g}",
        _global(play, player),
        str(player.count(OTHER)),
        str(player.count(NONE)),
        str(player.count(DIVERGED)),
        f"{player.loss:.4g}",
        f"{player.arrival:.0f}" if player.count(GLOBAL) else "–",
    ]


def notes(play: Play) -> list[str]:
    """Say how it was done and counted."""
    wide = f"{reach(play.function):.2g}"
    rates = ", ".join(f"{lr:g}" for lr in play.rates)
    falling = ", falling to 0 along a cosine" if play.schedule == "cosine" else ""
    said = [
        f"Every optimizer ran at lr {rates}{falling}, and is shown at its own best by median final "
        "loss.",
        f"A minimum is reached by ending within {wide} of it (0.5 % of the domain’s diagonal); "
        "arrival is when a run stays so near a global one.",
    ]
    if at_end := [f"{player.name} {player.lr:g}" for player in play.players if player.at_end]:
        said.append(
            f"At an end of the lr that were tried, so better may lie beyond: {', '.join(at_end)}."
        )
    if any("+sam" in player.name for player in play.players):
        said.append("SAM takes two gradients in each step.")
    lowest = _lowest(play)
    if len(lowest) > 1:
        places = ", ".join(_written(point) for point in lowest)
        said.append(f"Global minima, in the order of the sums: {places}.")
    return said


def _lowest(play: Play) -> list[tuple[float, ...]]:
    return [minimum.point for minimum in play.function.minima if minimum.is_global]


def _global(play: Play, player: Player) -> str:
    """Count the arrivals, for each global minimum where there are several."""
    total, lowest = str(player.count(GLOBAL)), _lowest(play)
    if len(lowest) == 1:
        return total
    at = Counter(end.minimum for end in player.ends)
    return f"{total} = {' + '.join(str(at[point]) for point in lowest)}"


def _written(point: tuple[float, ...]) -> str:
    numbers = ", ".join(f"{x:.4g}" for x in point)
    return f"({numbers})" if len(point) > 1 else numbers
