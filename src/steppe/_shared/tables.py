"""Make the tables that the commands print, all in one style."""

from collections.abc import Iterator, Sequence
from io import StringIO
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from steppe._shared.printable import encodable

# What a name is folded to at least.
_FOLDED = 14
_UNLIMITED = 100_000


def print_text(console: Console, text: str) -> None:
    """Print a text as it is, without markup, folded where the console ends."""
    console.print(Text(encodable(text, console.encoding)))


class TextTable:
    """A table of texts, whose first column holds the optimizers' names.

    No number is ever cut: on a narrow terminal names are folded, and columns that do not fit beside
    the others stand below them, after the names again. Texts are printed as they are: brackets in
    a name are no markup.

    Parameters
    ----------
    title : str
        What stands above it.
    first : str, default "optimizer"
        What stands above the names.
    """

    def __init__(self, title: str, first: str = "optimizer") -> None:
        self._title = title
        self._columns: list[tuple[str, dict[str, Any]]] = [(first, {"overflow": "fold"})]
        self._rows: list[Sequence[str]] = []
        self._encoding = "utf-8"

    def add_column(self, heading: str, **options: Any) -> None:
        """Add a column.

        Parameters
        ----------
        heading : str
            What stands above it.
        **options
            As those of ``rich.table.Table.add_column``.
        """
        self._columns.append((heading, options))

    def add_row(self, *cells: str) -> None:
        """Add a row, with a text for each column."""
        self._rows.append(cells)

    def __str__(self) -> str:
        """Return the table as lines of plain text, all columns beside each other."""
        console = Console(file=StringIO(), width=_UNLIMITED, color_system=None)
        with console.capture() as captured:
            console.print(self)
        return "\n".join(line.rstrip() for line in captured.get().splitlines())

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        """Yield tables that fit."""
        self._encoding = options.encoding
        title: str | None = self._title
        unlimited = options.update(width=_UNLIMITED)
        for columns in self._groups(console, options):
            made = self._table(title, [0, *columns])
            if Measurement.get(console, unlimited, made).minimum > options.max_width:
                # Names are folded: Rich would leave other texts wide, and cut numbers.
                made = self._table(title, [0, *columns], is_tight=True)
            yield made
            title = None

    def _groups(self, console: Console, options: ConsoleOptions) -> list[list[int]]:
        """Return the columns after the first, in groups that fit beside the names."""
        groups: list[list[int]] = [[]]
        # Rich says of no table that it is wider than it may be, and of no name that it is folded.
        unlimited = options.update(width=_UNLIMITED)
        names = Measurement.get(console, unlimited, self._table(None, [0])).minimum
        room = options.max_width + max(0, names - _FOLDED - 2)
        for column in range(1, len(self._columns)):
            wider = self._table(None, [0, *groups[-1], column])
            needed = Measurement.get(console, unlimited, wider).minimum
            if groups[-1] and needed > room:
                groups.append([])
            groups[-1].append(column)
        return groups

    def _table(self, title: str | None, columns: Sequence[int], *, is_tight: bool = False) -> Table:
        table = Table(
            box=box.SIMPLE_HEAD,
            collapse_padding=True,
            pad_edge=False,
            title=None if title is None else self._text(title),
            title_justify="left",
        )
        for column in columns:
            heading, options = self._columns[column]
            least = self._least_width(column)
            limits = {"min_width": least, **({"max_width": least} if is_tight and column else {})}
            table.add_column(self._text(heading), **{**options, **limits})
        for row in self._rows:
            table.add_row(*(self._text(row[column]) for column in columns))
        return table

    def _text(self, cell: str) -> Text:
        # Before widths are measured: what replaces a sign may be longer.
        return Text(encodable(cell, self._encoding))

    def _least_width(self, column: int) -> int:
        """Return the width that keeps every number, or every line, of a column in one piece."""
        heading, options = self._columns[column]
        cells = [heading, *(row[column] for row in self._rows)]
        texts = [encodable(cell, self._encoding) for cell in cells]
        whole = options.get("no_wrap", False)
        pieces = [each for text in texts for each in (text.split("\n") if whole else text.split())]
        longest = max(map(cell_len, pieces), default=0)
        if options.get("overflow") == "fold":
            longest = min(longest, _FOLDED)
        return max(longest, options.get("min_width") or 0)
