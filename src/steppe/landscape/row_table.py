"""Results of three columns, a name, a value and a remark, as tables for terminals and as text."""

from collections.abc import Sequence
from typing import Any, Literal

Rows = Sequence[tuple[str, str, str]]


def row_table(
    rows: Rows,
    title: str,
    headings: tuple[str, str] = ("value", ""),
    remarks: Literal["left", "right"] = "left",
) -> Any:
    """Return rows as a ``rich.table.Table``.

    Parameters
    ----------
    rows : sequence of (str, str, str)
        Name, value and remark.
    title : str
        What stands above.
    headings : tuple of (str, str)
        Of values and of remarks.
    remarks : "left" or "right"
        Which side remarks stand at.

    Raises
    ------
    ImportError
        Rich is not installed.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    table.add_column("", overflow="fold")
    table.add_column(headings[0], justify="right", no_wrap=True)
    table.add_column(headings[1], justify=remarks, overflow="fold")
    for row in rows:
        # As text: a user's names may hold what rich reads as markup.
        table.add_row(*map(Text, row))
    return table


def row_text(rows: Rows) -> str:
    """Return rows as lines of plain text.

    Examples
    --------
    >>> print(row_text([("loss", "0.5", ""), ("λ_max", "12", "to 1 %")]))
    loss   0.5
    λ_max   12  to 1 %
    """
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    lines = (f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c}".rstrip() for a, b, c in rows)
    return "\n".join(lines)
