"""The cells that the tables of a study are made of."""

import math
from collections.abc import Callable, Sequence

from steppe._shared.page.parts import HtmlCell
from steppe._shared.statistics import Interval
from steppe.compare.records.best_of_k import Difference
from steppe.compare.report.formatting import (
    MISSING,
    format_interval,
    format_p_value,
    format_significant,
)

EMPTY = HtmlCell(MISSING, None)


def interval_cell(value: Interval, digits: int | None, *, sign: bool = False) -> HtmlCell:
    """Write a number with its interval below, to so many decimals; None for three digits."""
    if digits is None:
        text = format_significant(value)
    else:
        text = format_interval(value, digits, sign=sign)
    mean, bracket, bounds = text.partition("[")
    known = math.isfinite(value.low) and math.isfinite(value.high)
    return HtmlCell(
        mean.strip(),
        sort_key(value.mean),
        bracket + bounds,
        bounds=(value.low, value.high) if known else None,
    )


def difference_cells(found: Difference, digits: int, p: float | None = None) -> list[HtmlCell]:
    """Write a difference with its interval, and its p value: its own if none is given."""
    change = Interval(found.estimate, found.low, found.high)
    return [
        interval_cell(change, digits, sign=True),
        number_cell(found.p if p is None else p, format_p_value),
    ]


def number_cell(value: float, write: Callable[[float], str]) -> HtmlCell:
    """Write a number."""
    return HtmlCell(write(value), sort_key(value))


def text_cell(text: str) -> HtmlCell:
    """Write text, which is sorted as such."""
    return HtmlCell(text or MISSING, "" if text in ("", MISSING) else text)


def bar_cells(values: Sequence[float], write: Callable[[float], str]) -> list[HtmlCell]:
    """Write numbers with bars, the longest of which is as wide as the column."""
    longest = max((value for value in values if math.isfinite(value)), default=0.0)
    return [
        HtmlCell(write(value), sort_key(value), share=value / longest if longest else None)
        if math.isfinite(value)
        else EMPTY
        for value in values
    ]


def three_digits(value: float) -> str:
    """Write three digits of a number."""
    return format_significant(Interval(value, math.nan, math.nan))


def sort_key(value: float) -> float | None:
    """Return what a number is sorted by: None, which comes last, where there is none."""
    return value if math.isfinite(value) else None
