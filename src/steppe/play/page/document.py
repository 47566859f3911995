"""Fill the page's template with table, charts and data."""

from pathlib import Path

from steppe._shared.files import write_text
from steppe._shared.page.parts import HtmlCell, HtmlTable
from steppe._shared.page.render import read, render
from steppe._shared.page.styles import styles_of
from steppe.play.end_points import DIVERGED, GLOBAL, NONE, OTHER
from steppe.play.page import charts
from steppe.play.report import footnotes, heading, table_cells, title
from steppe.play.results import OptimizerResult, SweepResult

_COLUMNS = {
    "lr": "the learning rate with the lowest median final loss of all that were tried",
    "global minimum": "runs that ended at a global minimum",
    "another minimum": "runs that ended at another minimum",
    "none": "runs that ended at no minimum",
    "diverged": "runs that overflowed",
    "median final loss": "over all runs; those that diverged count as infinite",
    "mean steps to arrive": "over the runs that ended at a global minimum",
}


def write_page(result: SweepResult, path: Path) -> None:
    """Write :func:`page` to a file. A failure leaves an old file as it was.

    Raises
    ------
    OSError
        The file cannot be written.
    """
    write_text(path, page(result))


def page(result: SweepResult) -> str:
    """Return one HTML document, of about 5 MB, that asks nothing of the network.

    Readers can zoom charts, turn the surface, hide optimizers and download the data as JSON.
    """
    drawn = charts.surface_charts(result)
    losses = charts.losses(result)
    return render(
        __package__,
        [*drawn, *losses],
        scripts=[read(__package__, "orbit.js")],
        style=read(__package__, "style.css"),
        title=f"{title(result)}: {len(result.optimizers)} optimizers",
        subtitle=heading(result).partition(": ")[2],
        formula=result.function.formula,
        table=HtmlTable(
            "Where they ended", _COLUMNS, [(p.name, _row(result, p)) for p in result.optimizers]
        ),
        notes=footnotes(result),
        styles=styles_of(optimizer.name for optimizer in result.optimizers),
        drawn=drawn,
        losses=losses,
        result=result.to_dict(),
    )


def _row(result: SweepResult, optimizer: OptimizerResult) -> list[HtmlCell]:
    keys = [optimizer.lr, *(optimizer.count(kind) for kind in (GLOBAL, OTHER, NONE, DIVERGED))]
    keys += [optimizer.loss, optimizer.arrival]
    # A key of None stays last, whichever way a column is sorted.
    return [
        HtmlCell(text, key if abs(key) < float("inf") else None)
        for text, key in zip(table_cells(result, optimizer), keys, strict=True)
    ]
