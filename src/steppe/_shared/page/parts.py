"""What pages are made of: charts that Plotly draws, and tables with a row for each optimizer.

The pages of studies and of ``steppe play`` are built of them; the terminal and the CSV and LaTeX
files show the same tables.
"""

import textwrap
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from steppe._shared.notebook_tables import html_table
from steppe._shared.tables import TextTable


@dataclass(frozen=True)
class Chart:
    """A chart for ``Plotly.newPlot``.

    Attributes
    ----------
    name : str
        The chart is drawn in the element whose id is ``chart-NAME``.
    label : str
        A description of the chart for screen readers.
    traces : sequence of mapping
        Plotly's traces. Each has its optimizer's name as ``meta``, by which the legend hides and
        shows it.
    layout : mapping
        Plotly's layout without colours, which depend on the reader's light or dark mode.
    variants : mapping
        Changes that a switch of the page makes, by the switch's value: axes of the layout,
        ``traces`` with entries of every trace, and ``annotations``, each with its optimizer's name
        as ``name``.
    rows : int
        Number of optimizers that stand below each other; 0 for a chart of fixed height.
    """

    name: str
    label: str
    traces: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    rows: int = 0


def filled_range(colour: str) -> dict[str, Any]:
    """Return how a trace is drawn that goes around the range of several runs: as a faint area."""
    return {
        "mode": "lines",
        "line": {"width": 0},
        "fill": "toself",
        "fillcolor": colour,
        "opacity": 0.15,
        "hoverinfo": "skip",
    }


@dataclass(frozen=True)
class HtmlCell:
    """A cell of a table.

    Attributes
    ----------
    text : str
        The value as it is shown.
    key : float or str or None
        The value that the column is sorted by; None comes last.
    aside : str, default ""
        Smaller text below the value, such as its interval.
    share : float or None, default None
        Length of a bar below the value, from 0 to 1; None for no bar.
    bounds : tuple of (float, float) or None, default None
        The interval as numbers, for files.
    """

    text: str
    key: float | str | None
    aside: str = ""
    share: float | None = None
    bounds: tuple[float, float] | None = None

    @property
    def lines(self) -> str:
        """The value, and below it what is smaller."""
        return "\n".join(filter(None, (self.text, self.aside)))


@dataclass(frozen=True)
class HtmlTable:
    """A table with a row for each optimizer, which readers can sort by any column.

    Attributes
    ----------
    caption : str
        A description of the table for screen readers.
    columns : mapping
        From heading to its explanation, for all columns but the first, which holds the names.
    rows : sequence of (str, sequence of HtmlCell)
        Optimizer and cells.
    order : tuple of (str, str)
        The heading that the rows are sorted by at first, and "ascending" or "descending".
    first : str, default "optimizer"
        The heading of the first column; "optimizer" has each optimizer's look beside its name.
    """

    caption: str
    columns: Mapping[str, str]
    rows: Sequence[tuple[str, Sequence[HtmlCell]]]
    order: tuple[str, str] = ("", "")
    first: str = "optimizer"

    def is_text(self, column: int) -> bool:
        """Return whether a column is sorted as text."""
        return self._texts[column]

    def to_text(self, without: Container[str] = ()) -> TextTable:
        """Return the table for a terminal; intervals stand below numbers, so that many columns fit.

        Parameters
        ----------
        without : container of str, default ()
            Headings of columns that are left out.
        """
        made = TextTable(self.caption, self.first)
        shown = [i for i, heading in enumerate(self.columns) if heading not in without]
        headings = list(self.columns)
        for i in shown:
            if self.is_text(i):
                made.add_column(headings[i])
                continue
            # No line of a number is broken, so the heading is folded to as wide as the numbers are.
            lines = [line for _, cells in self.rows for line in cells[i].lines.splitlines()]
            width = max(map(len, (*lines, *headings[i].split())))
            made.add_column(textwrap.fill(headings[i], width), justify="right", no_wrap=True)
        for name, cells in self.rows:
            made.add_row(name, *(cells[i].lines for i in shown))
        return made

    def __str__(self) -> str:
        """Return the table as lines of plain text."""
        return str(self.to_text())

    def _repr_html_(self) -> str:
        """Return the table for notebooks."""
        rows = [(name, *(cell.lines for cell in cells)) for name, cells in self.rows]
        return html_table(rows, {self.first: "", **self.columns}, self.caption)

    @cached_property
    def _texts(self) -> list[bool]:
        columns = range(len(self.columns))
        return [any(isinstance(cells[i].key, str) for _, cells in self.rows) for i in columns]
