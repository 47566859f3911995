"""The HTML document: what it holds, put into its template."""

from pathlib import Path

from steppe._shared.files import write_text
from steppe._shared.page.parts import HtmlCell, HtmlTable
from steppe._shared.page.render import read, render
from steppe._shared.page.styles import styles_of
from steppe.play.end_points import DIVERGED, GLOBAL, NONE, OTHER
from steppe.play.page import charts
from steppe.play.report import cells, heading, notes, title
from steppe.play.results import Play, Player

_COLUMNS = {
    "lr": "of those tried, the one with the lowest median final loss",
    "global minimum": "starts that led to a global minimum",
    "another minimum": "starts that led to another one",
    "none": "starts that led to no minimum",
    "diverged": "starts from which it left all numbers behind",
    "median final loss": "over the starts; those that diverged count as infinite",
    "mean steps to arrive": "of the starts that led to a global minimum",
}


def write_page(play: Play, path: Path) -> None:
    """Write :func:`page` to a file, whole or not at all.

    Raises
    ------
    OSError
        It cannot be written.
    """
    write_text(path, page(play))


def page(play: Play) -> str:
    """Make one HTML document that asks nothing of the network, about 5 MB.

    Its charts can be zoomed, the surface turned, and each optimizer hidden; the data are in it.
    """
    drawn = charts.landscape(play)
    losses = charts.losses(play)
    return render(
        __package__,
        [*drawn, *losses],
        scripts=[read(__package__, "orbit.js")],
        style=read(__package__, "style.css"),
        title=f"{title(play)}: {len(play.players)} optimizers",
        subtitle=heading(play).partition(": ")[2],
        formula=play.function.formula,
        table=HtmlTable(
            "Where they ended", _COLUMNS, [(p.name, _row(play, p)) for p in play.players]
        ),
        notes=notes(play),
        styles=styles_of(player.name for player in play.players),
        drawn=drawn,
        losses=losses,
        play=play.to_dict(),
    )


def _row(play: Play, player: Player) -> list[HtmlCell]:
    keys = [player.lr, *(player.count(kind) for kind in (GLOBAL, OTHER, NONE, DIVERGED))]
    keys += [player.loss, player.arrival]
    # What is not finite stays last, whichever way a column is sorted.
    return [
        HtmlCell(text, key if abs(key) < float("inf") else None)
        for text, key in zip(cells(play, player), keys, strict=True)
    ]
