"""The ratio of two medians and its interval; test_comparisons.py checks means and differences."""

import numpy as np
import pytest

from steppe._shared.statistics import Ratio, ratio_of_medians


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
