"""What the best of k trials is worth: by enumeration, by brute force, and over many studies."""

import math
from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steppe.compare.records.best_of_k import (
    Pool,
    Validation,
    compare_pools,
    contrast,
    degrees_of_freedom,
    expected_best,
    interval_of_best,
    weights,
)
from steppe.compare.records.sample_groups import leave_groups_out


def draw(seed: int, trials: int, *, steps: float = 0.0) -> Pool:
    """Return a pool of random results; scores in steps, so that there are ties."""
    generator = np.random.default_rng(seed)
    score = generator.normal(size=trials)
    if steps:
        score = np.round(score / steps) * steps
    return Pool(score, generator.normal(size=trials), generator.normal(size=trials))


def without(pool: Pool, trial: int) -> Pool:
    return pool.take(np.delete(np.arange(len(pool)), trial))


@given(trials=st.integers(1, 8), k=st.integers(1, 8), seed=st.integers(0, 2**32 - 1))
def test_the_estimate_is_the_mean_over_all_choices_of_k_trials(
    trials: int, k: int, seed: int
) -> None:
    k = min(k, trials)
    pool = draw(seed, trials, steps=1.0)

    def best(chosen: tuple[int, ...]) -> int:
        return max(chosen, key=lambda i: (pool.score[i], -pool.loss[i], -i))

    wanted = np.mean([pool.test[best(chosen)] for chosen in combinations(range(trials), k)])
    assert expected_best(pool, k) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize(("trials", "k"), [(24, 4), (80, 8), (7, 7), (5, 1)])
def test_weights_are_the_closed_form(trials: int, k: int) -> None:
    wanted = [math.comb(trials - 1 - r, k - 1) / math.comb(trials, k) for r in range(trials)]
    np.testing.assert_allclose(weights(trials, k), wanted, rtol=1e-12, atol=1e-15)
    assert degrees_of_freedom(trials, k) == pytest.approx(1 / sum(w * w for w in wanted) - 1)


@pytest.mark.parametrize("k", [0, 5])
def test_a_budget_out_of_range_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match=f"k must be from 1 to the 4 trials, got {k}"):
        weights(4, k)


def test_a_trial_that_diverged_is_chosen_last() -> None:
    pool = Pool(np.array([-np.inf, 0.5]), np.array([np.inf, 1.0]), np.array([10.0, 90.0]))
    assert expected_best(pool, 2) == 90.0
    assert expected_best(pool, 1) == 50.0


@pytest.mark.parametrize("steps", [0.0, 1.0])
def test_the_error_is_the_jackknife_of_the_paired_difference(steps: float) -> None:
    ours, theirs = draw(1, 12, steps=steps), draw(2, 12, steps=steps)
    left = np.array(
        [expected_best(without(ours, i), 3) - expected_best(without(theirs, i), 3)
         for i in range(12)]
    )  # fmt: skip
    wanted = math.sqrt(11 / 12 * np.square(left - left.mean()).sum())
    assert compare_pools(ours, theirs, 3, swaps=1).shares.trials == pytest.approx(wanted)


def test_p_is_that_of_all_swaps_of_labels() -> None:
    """Of 9 trials there are 512 swaps: the drawn ones must come near to all of them."""
    ours, theirs = draw(5, 9), draw(6, 9)
    ours = replace(ours, test=ours.test + 1.0)

    def ratio(side: tuple[int, ...]) -> float:
        fields = ("score", "loss", "test")
        chosen = np.array(side, dtype=bool)
        first = Pool(*(np.where(chosen, getattr(theirs, f), getattr(ours, f)) for f in fields))
        second = Pool(*(np.where(chosen, getattr(ours, f), getattr(theirs, f)) for f in fields))
        difference = expected_best(first, 2) - expected_best(second, 2)
        left = np.array(
            [expected_best(without(first, i), 2) - expected_best(without(second, i), 2)
             for i in range(9)]
        )  # fmt: skip
        return abs(difference) / math.sqrt(8 * left.var())

    ratios = [ratio(side) for side in product((0, 1), repeat=9)]
    wanted = np.mean(np.array(ratios) >= ratios[0] - 1e-12)
    found = compare_pools(ours, theirs, 2, swaps=20_000)
    assert found.p == pytest.approx(wanted, abs=0.01)
    assert found.estimate == pytest.approx(expected_best(ours, 2) - expected_best(theirs, 2))


def test_the_same_pool_twice_shows_no_difference() -> None:
    found = compare_pools(draw(0, 24), draw(0, 24), 4)
    assert (found.estimate, found.p, found.shares.trials) == (0.0, 1.0, 0.0)


def test_the_same_difference_in_every_trial_is_significant() -> None:
    pool = draw(0, 24)
    found = compare_pools(replace(pool, test=pool.test + 1.0), pool, 4)
    assert found.estimate == pytest.approx(1.0)
    assert found.p < 0.001


def test_exchanging_the_optimizers_changes_the_sign_alone() -> None:
    one, other = (
        compare_pools(*pair, 4) for pair in ((draw(1, 24), draw(2, 24)), (draw(2, 24), draw(1, 24)))
    )
    assert one.estimate == pytest.approx(-other.estimate)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low))
    assert one.p == pytest.approx(other.p, abs=0.02)


@pytest.mark.parametrize(
    ("trials", "others", "message"),
    [(24, 23, "equally large, got 24 and 23"), (11, 11, "at least 3 times the budget, 12, got 11")],
)
def test_pools_that_cannot_be_compared_are_refused(trials: int, others: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare_pools(draw(0, trials), draw(1, others), 4)


def test_the_test_samples_share_is_the_error_of_a_mean_over_them() -> None:
    generator = np.random.default_rng(3)
    pools = []
    for seed in (1, 2):
        samples = generator.random((12, 300))
        pools.append(replace(draw(seed, 12), test=samples.mean(axis=1), test_samples=samples))
    shares = [compare_pools(*pools, 3, swaps=1).shares.test]
    # Leave one sample out at a time: of a mean the jackknife is exact.
    left = []
    for sample in range(300):
        kept = np.delete(np.arange(300), sample)
        fewer = [replace(p, test=p.test_samples[:, kept].mean(axis=1)) for p in pools]
        left.append(expected_best(fewer[0], 3) - expected_best(fewer[1], 3))
    shares.append(math.sqrt(299 * np.var(left)))
    assert shares[0] == pytest.approx(shares[1], rel=1e-9)


def test_leaving_groups_out_is_the_mean_of_the_rest() -> None:
    samples = np.random.default_rng(0).random((3, 45))
    found = leave_groups_out(samples)
    assert found.shape == (20, 3)
    for group in range(20):
        rest = samples[:, np.arange(45) % 20 != group]
        np.testing.assert_allclose(found[group], rest.mean(axis=1))


def test_validation_that_orders_alike_without_any_group_has_no_share() -> None:
    pool = draw(4, 12)
    sure = Validation(np.tile(pool.score, (20, 1)), np.tile(pool.loss, (20, 1)))
    found = compare_pools(replace(pool, validation=sure), replace(draw(5, 12), validation=sure), 3)
    assert found.shares.validation == 0.0


def test_the_interval_is_students_with_all_errors() -> None:
    found = compare_pools(draw(1, 24), draw(2, 24), 4, swaps=1)
    # t(0.975) of 8.8 degrees of freedom, interpolated in a printed table: 2.262 at 9, 2.306 at 8.
    assert (found.high - found.low) / 2 == pytest.approx(2.268 * found.shares.total, rel=0.005)
    assert found.detectable(1) > 0
    assert found.detectable(7) > 1.2 * found.detectable(1)


def test_few_trials_have_no_interval() -> None:
    found = interval_of_best(draw(1, 11), 4)
    assert math.isfinite(found.mean)
    assert math.isnan(found.low)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [0.0, 0.7], ids=["continuous", "ties"])
def test_equal_optimizers_are_called_different_in_five_of_a_hundred_studies(steps: float) -> None:
    """600 null studies: 5 % have a standard error of 0.9 %, and 8 % would be over three of them."""
    studies = 600
    found = [
        compare_pools(draw(2 * n, 24, steps=steps), draw(2 * n + 1, 24, steps=steps), 4, swaps=399)
        for n in range(studies)
    ]
    assert np.mean([each.p < 0.05 for each in found]) < 0.077
    covered = np.mean([each.low <= 0 <= each.high for each in found])
    assert covered > 0.93


def test_a_contrast_of_two_is_their_comparison() -> None:
    random = np.random.default_rng(3)
    pools = [
        Pool(
            random.normal(size=30),
            np.zeros(30),
            random.normal(size=30),
            random.normal(size=(30, 40)),
        )
        for _ in range(2)
    ]
    compared = compare_pools(*pools, 4)
    found = contrast([(pools[0], 1.0), (pools[1], -1.0)], 4)
    assert found.mean == pytest.approx(compared.estimate)
    assert (found.low, found.high) == pytest.approx((compared.low, compared.high))


def test_an_interaction_that_is_none_is_covered() -> None:
    """Effects that add up exactly, trial by trial, have an interaction of 0 without an error."""
    random = np.random.default_rng(4)
    score, base = random.normal(size=24), random.normal(size=24)
    pools = [Pool(score, np.zeros(24), base + shift) for shift in (7.0, 3.0, 5.0, 1.0)]
    found = contrast(list(zip(pools, (1.0, -1.0, -1.0, 1.0), strict=True)), 4)
    assert (found.mean, found.low, found.high) == pytest.approx((0.0, 0.0, 0.0), abs=1e-12)


def test_a_contrast_needs_pools_of_one_size() -> None:
    small, large = (Pool(np.zeros(n), np.zeros(n), np.zeros(n)) for n in (12, 13))
    with pytest.raises(ValueError, match=r"equally large, of at least 12 trials, got \[12, 13\]"):
        contrast([(small, 1.0), (large, -1.0)], 4)
