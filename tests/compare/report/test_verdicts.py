"""Better and worse are claimed only where the corrected test says so."""

import math

import pytest

from steppe._shared.statistics import Comparison, Interval
from steppe.compare.report.verdicts import verdict


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
