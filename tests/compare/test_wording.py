"""What is claimed, and when."""

import math

import pytest

from steppe._shared.statistics import Comparison, Interval
from steppe.compare.report.formatting import (
    decimals,
    duration,
    probability,
    significant,
    verdict,
    with_interval,
)


def comparison(mean: float, p: float, all_equal: bool = False) -> Comparison:
    return Comparison(Interval(mean, mean - 1, mean + 1, all_equal), p, 1.0, 5)


@pytest.mark.parametrize(
    ("mean", "p", "higher_is_better", "says"),
    [
        (0.5, 0.049, True, "better"),
        (0.5, 0.049, False, "worse"),
        (-0.5, 0.001, True, "worse"),
        (-0.5, 0.001, False, "better"),
        (0.5, 0.05, True, "no difference seen"),
        (-0.5, 0.9, False, "no difference seen"),
        (0.5, math.nan, True, "too few seeds"),
        (math.nan, math.nan, True, "too few seeds"),
    ],
)
def test_the_corrected_p_decides(mean: float, p: float, higher_is_better: bool, says: str) -> None:
    assert verdict(comparison(mean, p), higher_is_better) == says


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_equal_differences_are_called_what_they_are(higher_is_better: bool) -> None:
    same = comparison(0.5, math.nan, all_equal=True)
    none = comparison(0.0, math.nan, all_equal=True)
    assert verdict(same, higher_is_better) == "same on every seed"
    assert verdict(none, higher_is_better) == "no difference seen"


def test_numbers_that_are_not_there_are_dashes() -> None:
    nothing = Interval(math.nan, math.nan, math.nan)
    assert with_interval(nothing, 2) == significant(nothing) == "–"
    assert with_interval(Interval(math.inf, math.nan, math.nan), 2) == "–"
    assert probability(math.nan) == duration(math.nan) == "–"


def test_a_mean_without_an_interval_stands_alone() -> None:
    assert with_interval(Interval(0.5, math.nan, math.nan), 2, sign=True) == "+0.50"
    assert significant(Interval(0.0, math.nan, math.nan)) == "0.00"


def test_signs_are_true_ones() -> None:
    assert with_interval(Interval(-0.5, -1.0, 0.25), 2, sign=True) == "−0.50 [−1.00, +0.25]"
    assert significant(Interval(-2e-7, -3e-7, 1e-7)) == "−2.0e−07 [−3.0e−07, 1.0e−07]"


def test_decimals_leave_out_what_is_zero_or_not_finite() -> None:
    assert decimals([math.nan, 0.0, math.inf, 0.25], 2) == 2
    assert decimals([1234.0], 2) == 0
