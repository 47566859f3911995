"""The command ``steppe figure``."""

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table

from steppe.commands.console import make_console, refusals
from steppe.commands.files import write_text
from steppe.commands.numbers import plain
from steppe.commands.pictures import write_png
from steppe.compare.report_command import read_study
from steppe.figures.catalogue import NAMES, Figure, find_figure


def figure(
    name: Annotated[
        str | None, typer.Argument(help="Which; without a name, all of them are listed.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Directory for NAME.png and NAME.json.")] = Path(
        "results/figures"
    ),
    results: Annotated[
        str | None,
        typer.Option(
            help="For figures of studies: the one to draw, as steppe report takes it. Default: one "
            "of those in docs/results."
        ),
    ] = None,
    redraw: Annotated[
        bool, typer.Option("--redraw", help="Draw NAME.json as it stands; measure nothing.")
    ] = False,
    threads: Annotated[int, typer.Option(help="CPU threads of torch.")] = 1,
) -> None:
    """Measure and draw one of the pictures that explain the methods.

    Each comes from the real optimizers, and says which claim it tests and what came out. The same
    command on the same machine gives the same numbers.
    """
    console = make_console()
    with refusals():
        if name is None:
            if redraw or results is not None:
                raise ValueError("without a name there is nothing to draw: steppe figure NAME …")
            _list(console)
            return
        if threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        torch.set_num_threads(threads)
        found = find_figure(name)
        file = out / f"{name}.json"
        if redraw:
            if results is not None:
                raise ValueError("--redraw draws what has been measured: leave --results out")
            data = json.loads(file.read_text())
        else:
            data = plain(found.measure(**_sources(found, results)))
            write_text(file, json.dumps(data, allow_nan=False) + "\n")
        write_png(found.draw(data), picture := out / f"{name}.png")
    console.print(found.text, soft_wrap=True, highlight=False, markup=False)
    console.print(f"\nFigure: {picture}", soft_wrap=True, highlight=False, markup=False)
    console.print(f"Numbers: {file}", soft_wrap=True, highlight=False, markup=False)


def _sources(found: Figure, results: str | None) -> dict[str, Any]:
    if results is not None and not found.takes_study:
        raise ValueError(f"{found.name} runs its own experiment: leave --results out")
    if results is None and found.study is not None and not found.study.is_file():
        raise ValueError(
            f"{found.name} draws a study, and {found.study} is not here: run it in a checkout of "
            "steppe, or name a study of yours with --results"
        )
    source = results or found.study
    return {"study": read_study(str(source), None)} if source else {}


def _list(console: Any) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    for each in map(find_figure, NAMES):
        table.add_row(each.name, each.title)
    console.print(table)
