"""Results as small HTML tables, for notebooks."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from types import MappingProxyType
from typing import Any

import numpy as np


def html_table(
    rows: Iterable[Sequence[str]],
    head: Mapping[str, str] = MappingProxyType({}),
    caption: str = "",
) -> str:
    """Return a table whose first column names the rows.

    Parameters
    ----------
    rows : iterable of sequences of str
        The cells. Lines after a cell's first are small.
    head : mapping, default {}
        From each column's heading to what explains it, or "".
    caption : str, default ""
        What stands above it.

    Examples
    --------
    >>> html_table([("λ", "<1")], caption="Eigenvalue")
    '<table><caption>Eigenvalue</caption><tbody><tr><th>λ</th><td>&lt;1</td></tr></tbody></table>'
    """
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    top = "".join(
        f'<th title="{escape(meaning)}">{escape(heading)}</th>' for heading, meaning in head.items()
    )
    top = f"<thead><tr>{top}</tr></thead>" if head else ""
    body = "".join(
        f"<tr><th>{escape(name)}</th>{''.join(map(_cell, cells))}</tr>" for name, *cells in rows
    )
    return f"<table>{title}{top}<tbody>{body}</tbody></table>"


def _cell(text: str) -> str:
    first, *more = map(escape, text.split("\n"))
    return f"<td>{first}{''.join(f'<br><small>{line}</small>' for line in more)}</td>"


def field_rows(fields: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return names and values as texts: numbers with six digits, of arrays shape and range."""
    return [(name.replace("_", " "), _written(value)) for name, value in fields.items()]


def _written(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return _written_array(np.asarray(value, dtype=object if _is_ragged(value) else None))
    return str(value)


def _is_ragged(value: list[Any]) -> bool:
    return any(isinstance(each, dict | list) for each in value) and not _is_matrix(value)


def _is_matrix(value: list[Any]) -> bool:
    lengths = {len(each) if isinstance(each, list) else -1 for each in value}
    return len(lengths) == 1 and -1 not in lengths


def _written_array(array: Any) -> str:
    if array.dtype.kind not in "fiu" or array.size == 0:
        return f"{array.size} values" if array.size > 4 else ", ".join(map(str, array.ravel()))
    if array.size <= 8:
        return ", ".join(f"{each:.6g}" for each in array.ravel())
    low, high = np.nanmin(array), np.nanmax(array)
    shape = "×".join(map(str, array.shape))
    return f"{shape} numbers from {low:.6g} to {high:.6g}"
