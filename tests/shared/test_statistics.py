"""Intervals against Student's table and by counting, Holm by brute force, ratios of medians."""

import itertools
import math
from statistics import fmean, stdev

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steppe._shared.statistics import Ratio, holm, interval, mean, ratio_of_medians

# Two-sided 95 % points of Student's t by the number of values, from printed tables.
T_TABLE = {2: 12.7062, 3: 4.3027, 5: 2.7764, 6: 2.5706, 10: 2.2622}

p_values = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=6)
few = st.lists(st.integers(-50, 50).map(float), min_size=2, max_size=6)
repeatable = settings(max_examples=40)


@pytest.mark.parametrize("n", T_TABLE)
def test_the_interval_is_students(n: int) -> None:
    values = np.random.default_rng(n).normal(size=n).tolist()
    half = T_TABLE[n] * stdev(values) / math.sqrt(n)
    found = interval(values)
    assert found.mean == pytest.approx(fmean(values))
    assert (found.low, found.high) == pytest.approx(
        (fmean(values) - half, fmean(values) + half), rel=1e-4
    )


@pytest.mark.parametrize("n", [3, 5, 10])
def test_the_interval_holds_the_true_mean_as_often_as_said(n: int) -> None:
    """Of three values a bootstrap does so in 75 %. Three standard errors of 2 000 counts."""
    random = np.random.default_rng(0)
    drawn = [interval(random.normal(5.0, 2.0, n).tolist()) for _ in range(2_000)]
    share = np.mean([each.low <= 5.0 <= each.high for each in drawn])
    assert share == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / 2_000))


def test_one_value_and_none_have_no_interval() -> None:
    one, none = interval([3.0]), interval([])
    assert one.mean == 3.0
    assert math.isnan(one.low)
    assert math.isnan(one.high)
    assert math.isnan(none.mean)
    assert math.isnan(none.low)
    assert not one.all_equal


def test_equal_values_have_no_interval() -> None:
    """Differences of 2/540 in three seeds, equal but for rounding, are no certainty."""
    accuracies = [97.77777777777777, 97.96296296296296, 97.22222222222221]
    found = interval([(a + 100 * 2 / 540) - a for a in accuracies])
    assert found.mean == pytest.approx(100 * 2 / 540)
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert found.all_equal
    assert not interval([3.0, 4.0]).all_equal


def test_a_mean_that_is_too_large_is_infinite() -> None:
    assert mean([1e308, 1e308]) == math.inf
    assert mean(iter([1.0, 2.0])) == 1.5
    # So is the sum of squares of such numbers.
    assert math.isnan(interval([1e200, 2e200]).low)


@pytest.mark.parametrize("lost", [math.nan, math.inf])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_value_that_is_not_finite_leaves_no_interval(lost: float, place: int) -> None:
    values = [1.0, 2.0, 4.0]
    values[place] = lost
    found = interval(values)
    assert not math.isfinite(found.mean)
    assert math.isnan(found.low)
    assert not found.all_equal


@repeatable
@given(few, st.randoms(use_true_random=False))
def test_the_interval_encloses_the_mean_whatever_the_order(values: list[float], random) -> None:
    found = interval(values)
    random.shuffle(values)
    again = interval(values)
    assert found.all_equal or found.low <= found.mean <= found.high
    assert (again.low, again.high) == pytest.approx((found.low, found.high), nan_ok=True)


@repeatable
@given(few, st.integers(-100, 100), st.sampled_from([0.25, 0.5, 2.0, 8.0]))
def test_the_interval_moves_and_grows_with_the_values(
    values: list[float], shift: int, scale: float
) -> None:
    found = interval(values)
    moved = interval([scale * value + shift for value in values])
    expected = [scale * each + shift for each in (found.mean, found.low, found.high)]
    assert [moved.mean, moved.low, moved.high] == pytest.approx(expected, nan_ok=True)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.3, 0.6]) == pytest.approx([0.6, 0.6])
    assert holm([0.9, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@given(p_values)
def test_holm_is_the_closed_test_by_bonferroni(ps: list[float]) -> None:
    """Each hypothesis is rejected if every set of hypotheses that it is in is."""
    places = range(len(ps))
    sets = [s for size in range(1, len(ps) + 1) for s in itertools.combinations(places, size)]
    bonferroni = {s: min(1.0, len(s) * min(ps[place] for place in s)) for s in sets}
    expected = [max(bonferroni[s] for s in sets if place in s) for place in places]
    assert holm(ps) == pytest.approx(expected)


@given(p_values)
def test_holm_never_lowers_a_p_nor_changes_their_order(ps: list[float]) -> None:
    found = holm(ps)
    assert all(p <= after <= 1.0 for p, after in zip(ps, found, strict=True))
    after_sorting = [after for _, after in sorted(zip(ps, found, strict=True))]
    assert after_sorting == sorted(found)


def test_where_there_was_no_test_holm_counts_none() -> None:
    found = holm([0.01, math.nan, 0.02])
    assert [found[0], found[2]] == [0.02, 0.02]
    assert math.isnan(found[1])


def test_an_outlier_moves_no_median() -> None:
    ratio = ratio_of_medians([2.0] * 10 + [500.0], [4.0] * 11)
    assert ratio == Ratio(0.5, 0.5, 0.5)


def test_one_pair_has_no_width() -> None:
    assert ratio_of_medians([3.0], [2.0]) == Ratio(1.5, 1.5, 1.5)


def test_the_interval_holds_the_ratio_and_narrows_with_more_pairs() -> None:
    noise = np.random.default_rng(1).normal(1.0, 0.1, size=(2, 400))
    few, many = (ratio_of_medians(2 * noise[0, :n], noise[1, :n]) for n in (20, 400))
    assert few.low < few.value < few.high
    assert many.low < 2.0 < many.high
    assert many.high - many.low < (few.high - few.low) / 2


def test_slow_rounds_that_slow_both_leave_the_ratio_alone() -> None:
    slow = np.array([1.0, 5.0, 1.0, 5.0, 1.0, 5.0, 1.0])
    ratio = ratio_of_medians(0.5 * slow, slow)
    assert ratio == pytest.approx(Ratio(0.5, 0.5, 0.5))
