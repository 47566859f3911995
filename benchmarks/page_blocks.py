"""Blocks of pages in docs/ that a script of this folder writes, and the tables in them."""

import re

from steppe._shared.statistics import Interval


def with_block(page: str, script: str, text: str, part: str = "") -> str:
    """Return a page with a script's block replaced.

    Parameters
    ----------
    page
        A page's text, with ``<!-- benchmarks/<script>.py -->`` and ``<!-- end -->``.
    script
        The script's name.
    text
        What is to stand between them.
    part
        Which of several blocks: ``<!-- benchmarks/<script>.py <part> -->``.
    """
    name = re.escape(f"benchmarks/{script}.py {part}".strip())
    block = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->\n)", re.DOTALL)
    return block.sub(lambda found: f"{found[1]}\n{text}\n{found[2]}", page)


def head(*columns: str) -> str:
    """Return the first two lines of a table."""
    return f"{row(*columns)}\n{row(*['---'] * len(columns))}"


def row(*cells: str) -> str:
    """Return a line of a table."""
    return f"| {' | '.join(cells)} |"


def signed(value: Interval, digits: int = 2) -> str:
    """Return a difference with its interval."""
    text = f"{value.mean:+.{digits}f} [{value.low:+.{digits}f}, {value.high:+.{digits}f}]"
    return text.replace("-", "−")


def p_value(p: float) -> str:
    """Return a p-value with three digits."""
    return "p < 0.001" if p < 0.001 else f"p {p:.3f}"
