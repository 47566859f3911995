"""Make the tables that the commands print, all in one style."""

from rich import box
from rich.table import Table


def new_table(title: str) -> Table:
    """Return a table without rows whose first column holds the optimizers' names."""
    table = Table(
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
        title=title,
        title_justify="left",
    )
    # On a narrow terminal names are folded, so that no number is cut.
    table.add_column("optimizer", overflow="fold")
    return table
