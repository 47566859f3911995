"""The command ``python -m figures``."""

import json
from pathlib import Path
from typing import IO, Annotated, Any

import torch
from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from figures.catalogue import NAMES, Figure, find_figure
from steppe._shared.cli_options import AT_LEAST_ONE, limited
from steppe._shared.console import make_console, refusals
from steppe._shared.files import write_text, write_whole
from steppe._shared.json_values import json_ready
from steppe._shared.pictures import write_png
from steppe.compare import read_study

ALL = "all"

_FLAG = Parameter(negative="", show_default=False)

_DOCS = Path(__file__).parents[1] / "docs" / "images" / "figures"
_DOCS_WIDTH = 1500  # pixels


def figure(
    name: str | None = None,
    /,
    *,
    out_dir: Annotated[Path, Parameter(metavar="DIR")] = Path("results/figures"),
    results: Annotated[str | None, Parameter(metavar="STUDY")] = None,
    redraw: Annotated[bool, _FLAG] = False,
    docs: Annotated[bool, _FLAG] = False,
    threads: Annotated[int, limited(AT_LEAST_ONE)] = 1,
) -> None:
    """Measure and draw one of the pictures that explain the methods.

    Each comes from the real optimizers, and says which claim it tests and what came out. The same
    command on the same machine gives the same numbers.

    Parameters
    ----------
    name
        Name of the figure, or 'all'. Without a name, all figures are listed.
    out_dir
        Directory for NAME.png and NAME.json.
    results
        For figures of studies: the study to draw, as steppe report takes it. Default: one of those
        in docs/results.
    redraw
        Draw NAME.json as it stands; measure nothing.
    docs
        Write the picture to docs/images/figures too, narrower.
    threads
        CPU threads of torch.
    """
    console = make_console()
    with refusals():
        AT_LEAST_ONE.check("threads", threads)
        torch.set_num_threads(threads)
        if name is None:
            if redraw or docs or results is not None:
                raise ValueError(
                    "without a name there is nothing to draw: python -m figures NAME …"
                )
            _list(console)
            return
        if name == ALL and results is not None:
            raise ValueError("--results names one figure's study: name that figure instead of all")
        for each in NAMES if name == ALL else (name,):
            _make(find_figure(each), out_dir, results, redraw, docs, console)


def _make(
    found: Figure, out: Path, results: str | None, redraw: bool, docs: bool, console: Console
) -> None:
    file, picture = out / f"{found.name}.json", out / f"{found.name}.png"
    if redraw:
        if results is not None:
            raise ValueError("--redraw draws what has been measured: leave --results out")
        data = json.loads(file.read_text())
    else:
        data = json_ready(found.measure(**_sources(found, results)))
        write_text(file, json.dumps(data, allow_nan=False) + "\n")
    write_png(found.draw(data), picture)
    if docs:
        _write_narrower(picture, _DOCS / picture.name)
    console.print(found.text, soft_wrap=True, highlight=False, markup=False)
    console.print(f"\nFigure: {picture}", soft_wrap=True, highlight=False, markup=False)
    console.print(f"Numbers: {file}", soft_wrap=True, highlight=False, markup=False)


def _write_narrower(picture: Path, into: Path) -> None:
    """Write a copy that is narrow enough for a page of docs."""
    from PIL import Image

    with Image.open(picture) as image:
        height = round(image.height * _DOCS_WIDTH / image.width)
        narrow = image.convert("RGB").resize((_DOCS_WIDTH, height), Image.Resampling.LANCZOS)

    def write(file: IO[bytes]) -> None:
        narrow.save(file, format="png", optimize=True)

    write_whole(into, write)


def _sources(found: Figure, results: str | None) -> dict[str, Any]:
    if results is not None and not found.takes_study:
        raise ValueError(f"{found.name} runs its own experiment: leave --results out")
    if results is None and found.study is not None and not found.study.is_file():
        raise ValueError(
            f"{found.name} draws a study, and {found.study} is not here: start it from the root of "
            "a checkout of steppe, or name a study of yours with --results"
        )
    source = results or found.study
    return {"study": read_study(str(source), None)} if source else {}


def _list(console: Console) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    for each in map(find_figure, NAMES):
        table.add_row(each.name, each.title)
    console.print(table)
