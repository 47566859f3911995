"""Intervals by enumeration and by counting, tests against closed forms, Holm by brute force."""

import itertools
import math
from statistics import NormalDist, fmean, stdev

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_1samp

from steppe._shared.statistics import compare, corrected, holm, interval, paired
from steppe.compare.metrics.scores import ACCURACY

# Two-sided 95 % points of Student's t, from printed tables.
T_TABLE = {2: 12.7062, 3: 4.3027, 5: 2.7764, 6: 2.5706, 10: 2.2622}

p_values = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=6)
few = st.lists(st.integers(-50, 50).map(float), min_size=2, max_size=6)
repeatable = settings(max_examples=40)


def enumerated(values: list[float]) -> tuple[float, float]:
    """Give the expanded percentile interval from all n^n resamples."""
    n = len(values)
    tail = NormalDist().cdf(-math.sqrt(n / (n - 1)) * T_TABLE[n])
    means = [fmean(resample) for resample in itertools.product(values, repeat=n)]
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


@pytest.mark.parametrize("n", [3, 5, 6])
def test_the_interval_is_that_of_all_resamples(n: int) -> None:
    values = np.random.default_rng(n).normal(size=n).tolist()
    found, (low, high) = interval(values), enumerated(values)
    assert found.mean == pytest.approx(fmean(values))
    assert found.low == pytest.approx(low, abs=0.02 * (high - low))
    assert found.high == pytest.approx(high, abs=0.02 * (high - low))


@pytest.mark.parametrize("n", [2, 3, 4])
def test_of_up_to_four_values_it_is_their_range(n: int) -> None:
    values = np.random.default_rng(n).normal(size=n).tolist()
    found = interval(values)
    assert (found.low, found.high) == (min(values), max(values))


@pytest.mark.parametrize(("n", "least"), [(5, 0.88), (10, 0.91)])
def test_the_interval_holds_the_true_mean_as_often_as_said(n: int, least: float) -> None:
    """The plain percentile interval does so in 83 % and 90 %."""
    random = np.random.default_rng(0)
    trials = [interval(random.normal(5.0, 2.0, n).tolist()) for _ in range(200)]
    assert least < np.mean([trial.low <= 5.0 <= trial.high for trial in trials]) < 0.98


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
    found = paired(
        dict(enumerate(a + 100 * 2 / 540 for a in accuracies)), dict(enumerate(accuracies))
    )
    assert found.difference.mean == pytest.approx(100 * 2 / 540)
    assert math.isnan(found.difference.low)
    assert found.difference.all_equal
    assert math.isnan(found.p)
    assert math.isnan(found.effect)
    assert not interval([3.0, 4.0]).all_equal


def test_one_sample_more_on_each_seed_is_no_certainty() -> None:
    """Whatever the accuracies are: as rounded to single precision they would differ."""

    def accuracies(more: int) -> dict[int, float]:
        hits = [901, 872, 863, 914]
        return {
            seed: ACCURACY.total(torch.tensor([count + more, 1000]), math.nan)
            for seed, count in enumerate(hits)
        }

    found = paired(accuracies(1), accuracies(0))
    assert found.difference.all_equal
    assert math.isnan(found.p)


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


def test_p_and_effect_of_three_seeds_by_hand() -> None:
    """Differences 1, 2, 3: t = 2√3, of two degrees of freedom p = 1 − t/√(2 + t²); J(2) = 1/√π."""
    found = paired({0: 11.0, 1: 22.0, 2: 33.0}, {2: 30.0, 1: 20.0, 0: 10.0})
    assert found.seeds == 3
    assert found.difference.mean == 2.0
    t = 2 * math.sqrt(3)
    assert found.p == pytest.approx(1 - t / math.sqrt(2 + t * t))
    assert found.effect == pytest.approx(2 / math.sqrt(math.pi))


def test_p_of_two_seeds_by_hand_and_no_effect_size() -> None:
    """Differences 1, 3: t = 2, of one degree of freedom p = 1 − 2/π · arctan t."""
    found = paired({0: 1.0, 1: 3.0}, {0: 0.0, 1: 0.0})
    assert found.p == pytest.approx(1 - 2 / math.pi * math.atan(2))
    assert math.isnan(found.effect)


def test_p_is_that_of_the_differences_and_hedges_factor_nears_its_approximation() -> None:
    random = np.random.default_rng(4)
    ours, theirs = random.normal(0.3, 1.0, 20), random.normal(0.0, 1.0, 20)
    found = paired(dict(enumerate(ours.tolist())), dict(enumerate(theirs.tolist())))
    differences = (ours - theirs).tolist()
    assert found.p == pytest.approx(float(ttest_1samp(differences, 0.0).pvalue))
    # Hedges' own approximation, 1 − 3/(4m − 1), is good to 1e-3 here.
    factor = found.effect / (fmean(differences) / stdev(differences))
    assert factor == pytest.approx(1 - 3 / (4 * 19 - 1), abs=1e-3)


def test_pairing_leaves_out_seeds_that_one_has_not_or_that_are_not_finite() -> None:
    found = paired(
        {0: 1.0, 1: 2.0, 3: math.inf, 4: 1.0, 5: 100.0},
        {0: 0.0, 1: 0.5, 3: 1.0, 4: math.nan, 7: -100.0},
    )
    assert found.seeds == 2
    assert found.difference.mean == pytest.approx(1.25)


def test_fewer_than_two_common_seeds_give_no_test() -> None:
    for ours in ({0: 1.0}, {}, {5: 1.0}):
        found = paired(ours, {0: 0.5, 1: 1.0})
        assert math.isnan(found.p)
        assert math.isnan(found.effect)
        assert math.isnan(found.difference.low)
        assert found.seeds == len(ours.keys() & {0, 1})


@repeatable
@given(st.lists(st.integers(-20, 20), min_size=3, max_size=6), st.sampled_from([0.5, 4.0]))
def test_p_and_effect_know_no_unit_and_swap_with_the_sides(values: list[int], scale: float) -> None:
    ours = {seed: float(value) for seed, value in enumerate(values)}
    theirs = {seed: seed**2 / 2 for seed in ours}
    found, swapped = paired(ours, theirs), paired(theirs, ours)
    scaled = paired(
        {seed: scale * value for seed, value in ours.items()},
        {seed: scale * value for seed, value in theirs.items()},
    )
    assert [scaled.p, scaled.effect] == pytest.approx([found.p, found.effect], nan_ok=True)
    assert [swapped.p, swapped.effect] == pytest.approx([found.p, -found.effect], nan_ok=True)
    assert swapped.difference.mean == -found.difference.mean


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


def shifted(*shifts: float) -> dict[int, float]:
    return {seed: seed + shift for seed, shift in enumerate(shifts)}


VALUES = {
    "adamw": shifted(0.0, 0.0, 0.0, 0.0),
    "sgd": shifted(1.0, 1.1, 0.9, 1.05),
    "nadam": shifted(0.1, -0.1, 0.2, 0.3),
    "equal": shifted(1.0, 1.0, 1.0, 1.0),
    "lost": {},
}


def test_everyone_else_is_compared_with_the_baseline_as_one_family() -> None:
    found = compare(VALUES, "adamw")
    assert list(found) == ["sgd", "nadam", "equal", "lost"]
    raw = {name: paired(VALUES[name], VALUES["adamw"]).p for name in ("sgd", "nadam")}
    # Two tests were made: the smaller p counts twice.
    assert found["sgd"].p == pytest.approx(2 * raw["sgd"])
    assert found["nadam"].p == pytest.approx(raw["nadam"])
    assert math.isnan(found["equal"].p)
    assert found["lost"].seeds == 0
    assert found["sgd"].difference.mean == pytest.approx(1.0125)


@repeatable
@given(st.permutations(list(VALUES)))
def test_the_order_of_names_does_not_matter(names: list[str]) -> None:
    found = compare({name: VALUES[name] for name in names}, "adamw")
    usual = compare(VALUES, "adamw")
    assert {name: found[name].p for name in ("sgd", "nadam")} == {
        name: usual[name].p for name in ("sgd", "nadam")
    }


def test_another_baseline_turns_the_signs() -> None:
    found = compare({name: VALUES[name] for name in ("adamw", "sgd")}, "sgd")["adamw"]
    assert found.difference.mean == pytest.approx(-1.0125)


def test_an_unknown_baseline_is_refused() -> None:
    with pytest.raises(ValueError, match=r"baseline must be one of adamw, .*, got 'adam'"):
        compare(VALUES, "adam")


def test_corrected_changes_nothing_but_p() -> None:
    raw = [paired(VALUES[name], VALUES["adamw"]) for name in ("sgd", "nadam")]
    for before, after in zip(raw, corrected(raw), strict=True):
        assert (after.difference, after.effect, after.seeds) == (
            before.difference,
            before.effect,
            before.seeds,
        )
