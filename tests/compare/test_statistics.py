"""Intervals against tables and by counting."""

import math

import numpy as np
import pytest

from steppe.compare.statistics import Interval, interval, paired

# Two-sided 95 % points of Student's t, from printed tables.
T_TABLE = {2: 12.7062, 3: 4.3027, 5: 2.7764, 10: 2.2622}


@pytest.mark.parametrize("n", T_TABLE)
def test_half_width_is_t_times_the_standard_error(n: int) -> None:
    values = np.random.default_rng(n).normal(size=n)
    found = interval(values.tolist())
    assert found.mean == pytest.approx(values.mean())
    assert found.half_width == pytest.approx(
        T_TABLE[n] * values.std(ddof=1) / math.sqrt(n), rel=1e-4
    )


def test_the_interval_holds_the_true_mean_95_times_in_100() -> None:
    random = np.random.default_rng(0)
    trials = [interval(random.normal(5.0, 2.0, size=3).tolist()) for _ in range(2000)]
    held = np.mean([abs(trial.mean - 5.0) <= trial.half_width for trial in trials])
    # Three standard errors of a share of 0.95 in 2 000 trials are 0.015.
    assert held == pytest.approx(0.95, abs=0.015)


def test_one_value_and_none_have_no_interval() -> None:
    one, none = interval([3.0]), interval([])
    assert one.mean == 3.0
    assert math.isnan(one.half_width)
    assert math.isnan(none.mean)
    assert math.isnan(none.half_width)


def test_equal_values_have_no_interval() -> None:
    """Differences of 2/540 in three seeds, equal but for rounding, are no certainty."""
    accuracies = [97.77777777777777, 97.96296296296296, 97.22222222222221]
    found = paired(
        dict(enumerate(a + 100 * 2 / 540 for a in accuracies)), dict(enumerate(accuracies))
    )
    assert found.mean == pytest.approx(100 * 2 / 540)
    assert math.isnan(found.half_width)
    assert found.all_equal
    assert not found.excludes_zero
    assert not interval([3.0]).all_equal
    assert not interval([3.0, 4.0]).all_equal


@pytest.mark.parametrize("lost", [math.nan, math.inf])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_value_that_is_not_finite_leaves_no_interval(lost: float, place: int) -> None:
    values = [1.0, 2.0, 4.0]
    values[place] = lost
    found = interval(values)
    assert not math.isfinite(found.mean)
    assert math.isnan(found.half_width)
    assert not found.all_equal


def test_pairing_takes_out_what_the_seed_did() -> None:
    baseline = {0: 10.0, 1: 20.0, 2: 30.0}
    found = paired({2: 31.5, 0: 11.0, 1: 20.5}, baseline)
    assert found.mean == pytest.approx(1.0)
    assert found.half_width == pytest.approx(4.3027 * 0.5 / math.sqrt(3), rel=1e-4)


def test_pairing_leaves_out_seeds_that_only_one_has() -> None:
    found = paired({0: 1.0, 1: 2.0, 5: 100.0}, {0: 0.0, 1: 0.5, 7: -100.0})
    assert found.mean == pytest.approx(1.25)


@pytest.mark.parametrize(
    ("found", "excludes"),
    [
        (Interval(1.0, 0.9), True),
        (Interval(-1.0, 0.9), True),
        (Interval(1.0, 1.1), False),
        (Interval(0.0, 0.0), False),
        (Interval(1.0, math.nan), False),
    ],
)
def test_zero_is_excluded_only_by_a_whole_interval(found: Interval, excludes: bool) -> None:
    assert found.excludes_zero is excludes
