"""How numbers are written, and that missing ones are dashes."""

import math

from steppe._shared.statistics import Interval
from steppe.compare.report.formatting import (
    decimals,
    format_duration,
    format_interval,
    format_p_value,
    format_significant,
)


def test_numbers_that_are_not_there_are_dashes() -> None:
    nothing = Interval(math.nan, math.nan, math.nan)
    assert format_interval(nothing, 2) == format_significant(nothing) == "–"
    assert format_interval(Interval(math.inf, math.nan, math.nan), 2) == "–"
    assert format_p_value(math.nan) == format_duration(math.nan) == "–"


def test_a_mean_without_an_interval_stands_alone() -> None:
    assert format_interval(Interval(0.5, math.nan, math.nan), 2, sign=True) == "+0.50"
    assert format_significant(Interval(0.0, math.nan, math.nan)) == "0.00"


def test_signs_are_true_ones() -> None:
    assert format_interval(Interval(-0.5, -1.0, 0.25), 2, sign=True) == "−0.50 [−1.00, +0.25]"
    assert format_significant(Interval(-2e-7, -3e-7, 1e-7)) == "−2.0e−07 [−3.0e−07, 1.0e−07]"


def test_decimals_leave_out_what_is_zero_or_not_finite() -> None:
    assert decimals([math.nan, 0.0, math.inf, 0.25], 2) == 2
    assert decimals([1234.0], 2) == 0
