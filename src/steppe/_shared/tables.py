"""The look of the commands' tables."""

from rich import box
from rich.table import Table


def new_table(title: str) -> Table:
    """Begin a table with a line for each optimizer."""
    table = Table(
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
        title=title,
        title_justify="left",
    )
    # On a narrow terminal names and intervals take two lines, so that no number is cut.
    table.add_column("optimizer", overflow="fold")
    return table
