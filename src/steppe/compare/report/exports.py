"""A study's tables as CSV and LaTeX."""

import csv
import io
import re
from collections.abc import Mapping
from pathlib import Path

from steppe._shared.files import write_text
from steppe._shared.page.parts import HtmlCell, HtmlTable

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    # At the beginning of a row a bracket would be the option of the \\ before it.
    "[": "{[}",
    "]": "{]}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "−": "$-$",
    "–": "--",
    "…": r"\ldots{}",
    "×": r"$\times$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "λ": r"$\lambda$",
    "ρ": r"$\rho$",
    "β": r"$\beta$",
    "ξ": r"$\xi$",
}
_TO_ESCAPE = re.compile("|".join(map(re.escape, _LATEX)))


def to_csv(table: HtmlTable) -> str:
    """Write a table as CSV: a number as it is, its interval in two columns of their own.

    Examples
    --------
    >>> cell = HtmlCell("0.50", 0.5, "[0.25, 0.75]", bounds=(0.25, 0.75))
    >>> print(to_csv(HtmlTable("Scores", {"score": ""}, [("adamw", [cell])])), end="")
    optimizer,score,score low,score high
    adamw,0.5,0.25,0.75
    """
    with_bounds = [
        any(cells[place].bounds for _, cells in table.rows) for place in range(len(table.columns))
    ]
    head = [table.first]
    for heading, bounded in zip(table.columns, with_bounds, strict=True):
        head += [heading, *([f"{heading} low", f"{heading} high"] if bounded else [])]
    written = io.StringIO()
    rows = csv.writer(written, lineterminator="\n")
    rows.writerow(head)
    for name, cells in table.rows:
        row = [name]
        for place, cell in enumerate(cells):
            row.append(_value(cell, text=table.is_text(place)))
            if with_bounds[place]:
                row += map(_number, cell.bounds) if cell.bounds else ["", ""]
        rows.writerow(row)
    return written.getvalue()


def to_latex(table: HtmlTable) -> str:
    r"""Write a table as LaTeX, with the lines of the package booktabs.

    Examples
    --------
    >>> table = HtmlTable("Scores", {"score, %": ""}, [("sgd_m", [HtmlCell("−0.5", -0.5)])])
    >>> print(to_latex(table), end="")
    % Scores
    \begin{tabular}{lr}
    \toprule
    optimizer & score, \% \\
    \midrule
    sgd\_m & $-$0.5 \\
    \bottomrule
    \end{tabular}
    """
    kinds = "".join("l" if table.is_text(place) else "r" for place in range(len(table.columns)))
    lines = [
        f"% {' '.join(table.caption.split())}",
        rf"\begin{{tabular}}{{l{kinds}}}",
        r"\toprule",
        _latex_row([table.first, *table.columns]),
        r"\midrule",
        *(
            _latex_row([name, *(f"{cell.text} {cell.aside}".strip() for cell in cells)])
            for name, cells in table.rows
        ),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def write_tables(tables: Mapping[str, HtmlTable], directory: Path) -> list[Path]:
    """Write each table as NAME.csv and NAME.tex into a directory, each whole or not at all.

    Parameters
    ----------
    tables : mapping
        From names, which are those of the files.
    directory : Path
        Made if it is missing.

    Returns
    -------
    list of Path
        The files.

    Raises
    ------
    OSError
        A file cannot be written.
    """
    written = []
    for name, table in tables.items():
        for suffix, write in ((".csv", to_csv), (".tex", to_latex)):
            written.append(directory / f"{name}{suffix}")
            write_text(written[-1], write(table))
    return written


def _value(cell: HtmlCell, *, text: bool) -> str:
    if text:
        return cell.text if cell.key else ""
    return _number(cell.key) if isinstance(cell.key, float | int) else ""


def _number(value: float) -> str:
    return f"{value:.10g}"


def _latex_row(cells: list[str]) -> str:
    return rf"{' & '.join(map(_escaped, cells))} \\"


def _escaped(text: str) -> str:
    one_line = " ".join(text.split())
    return _TO_ESCAPE.sub(lambda found: _LATEX[found[0]], one_line)
