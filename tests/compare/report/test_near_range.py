"""An axis fits the contenders within reach; those far behind are named, never those ahead."""

import math

import pytest

from steppe._shared.statistics import Interval
from steppe.compare.report.near_range import fitted_range, near_range, with_zero


def around(**values: float) -> dict[str, Interval]:
    return {name: Interval(value, value - 0.2, value + 0.2) for name, value in values.items()}


def test_one_far_behind_is_left_out_and_named() -> None:
    near = near_range(around(a=87.0, b=87.2, c=87.1, d=81.0), True)
    assert near.beyond == ("d",)
    assert 86.7 < near.low < 86.8 < 87.4 < near.high < 87.5


def test_one_far_ahead_is_shown() -> None:
    assert near_range(around(a=87.0, b=87.2, c=87.1, d=95.0), True) is None
    near = near_range(around(a=87.0, b=87.2, c=87.1, d=95.0), False)
    assert near.beyond == ("d",)


@pytest.mark.parametrize(
    "values", [{}, {"a": 1.0}, {"a": 1.0, "b": 90.0}, {"a": 87.0, "b": 87.3, "c": 86.0}]
)
def test_where_all_are_within_reach_there_is_no_range(values: dict[str, float]) -> None:
    assert near_range(around(**values), True) is None


def test_what_has_no_number_does_not_count() -> None:
    found = around(a=87.0, b=87.2, c=87.1, d=81.0)
    found["e"] = Interval(math.nan, math.nan, math.nan)
    assert near_range(found, True).beyond == ("d",)
    bare = {name: Interval(each.mean, math.nan, math.nan) for name, each in found.items()}
    assert near_range(bare, True).beyond == ("d",)


def test_an_infinite_end_is_no_end() -> None:
    endless = Interval(90.0, -math.inf, math.inf)
    near = fitted_range(around(a=87.0) | {"b": endless}, True)
    assert 86.0 < near.low < 86.8 < 90.0 < near.high < 91.0
    found = around(a=87.0, b=87.2, c=87.1, d=81.0) | {"e": endless}
    assert near_range(found, True).beyond == ("d",)


def test_a_fitted_range_fits_all_where_all_are_within_reach() -> None:
    near = fitted_range(around(a=1.0, b=2.0), True)
    assert near.low < 0.8
    assert near.high > 2.2
    assert near.beyond == ()
    assert fitted_range({}, True) is None
    equal = fitted_range({"a": Interval(0.0, 0.0, 0.0)}, True)
    assert equal.low < 0.0 < equal.high


def test_an_axis_of_differences_reaches_over_zero() -> None:
    near = with_zero(near_range(around(a=5.0, b=5.1, c=5.2, d=-9.0), True))
    assert near.low == 0.0
    assert with_zero(None) is None
