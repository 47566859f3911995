"""Rates on quadratics: against matrices and simulations of the iteration, and closed forms."""

from collections.abc import Sequence
from math import sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steppe.theory import optimal_rate, rate

BETA = st.floats(0.0, 0.99)
STEP = st.floats(1e-3, 3.0)
AGES = st.lists(st.integers(1, 12), min_size=1, max_size=6)


def transition(h: float, lr: float, beta: float, ages: Sequence[int]) -> np.ndarray:
    """Write the iteration's two lines as a matrix on (x, m_{t−1}, …, m_{t−T})."""
    oldest = max(ages, default=1)
    momentum = np.zeros(1 + oldest)
    momentum[0], momentum[1] = (1 - beta) * h, beta
    direction = momentum.copy()
    for age in ages:
        direction[age] += 1 / len(ages)
    matrix = np.zeros((1 + oldest, 1 + oldest))
    matrix[0] = -lr * direction
    matrix[0, 0] += 1
    matrix[1] = momentum
    for age in range(2, oldest + 1):
        matrix[age, age - 1] = 1
    return matrix


def radius(h: float, lr: float, beta: float, ages: Sequence[int]) -> float:
    return float(np.abs(np.linalg.eigvals(transition(h, lr, beta, ages))).max())


@settings(max_examples=60)
@given(h=STEP, lr=STEP, beta=BETA, ages=AGES)
def test_rate_is_the_spectral_radius_of_the_iteration(
    h: float, lr: float, beta: float, ages: list[int]
) -> None:
    # Where roots coincide either is right to a root of the machine's precision only.
    critical = rate("critical-momenta", h, lr=lr, momentum=beta, ages=ages)
    assert critical == pytest.approx(radius(h, lr, beta, ages), rel=1e-5)
    heavy_ball = rate("heavy-ball", h, lr=lr, momentum=beta)
    assert heavy_ball == pytest.approx(radius(h, lr, beta, ()), rel=1e-6)


@pytest.mark.parametrize("ages", [(), (1, 2, 3, 4, 5), (3, 3, 11)])
def test_a_long_simulation_decays_at_the_rate(ages: tuple[int, ...]) -> None:
    h, lr, beta = 2.0, 0.05, 0.6
    matrix = transition(h, lr, beta, ages)
    state = np.ones(len(matrix))
    sizes = []
    for _ in range(3000):
        state = matrix @ state
        sizes.append(np.linalg.norm(state))
        state = state / sizes[-1]
    # A complex pair makes sizes oscillate about the rate.
    measured = np.exp(np.mean(np.log(sizes[1000:])))
    method, given_ages = ("critical-momenta", ages) if ages else ("heavy-ball", None)
    predicted = rate(method, h, lr=lr, momentum=beta, ages=given_ages)
    assert measured == pytest.approx(predicted, rel=1e-3)


def test_curvatures_keep_their_shape_and_the_default_is_five_slots() -> None:
    h = np.array([[0.5, 1.0, 2.0], [0.0, 3.0, 4.0]])
    found = rate("critical-momenta", h, lr=0.1, momentum=0.5)
    alone = [rate("critical-momenta", x, lr=0.1, momentum=0.5, ages=range(1, 6)) for x in h.flat]
    assert found.shape == (2, 3)
    assert found.ravel() == pytest.approx(alone)
    assert found[1, 0] == 1.0  # no curvature, no pull


@pytest.mark.parametrize("kappa", [1.0, 1.5, 10.0, 1e3, 1e6])
def test_heavy_ball_reaches_its_known_optimum(kappa: float) -> None:
    best = optimal_rate("heavy-ball", kappa)
    assert best.rate == pytest.approx((sqrt(kappa) - 1) / (sqrt(kappa) + 1), rel=1e-12, abs=1e-15)
    h = np.geomspace(1, kappa, 301)
    worst = rate("heavy-ball", h, lr=best.lr, momentum=best.momentum).max()
    # At both ends two roots coincide: rounding of lr shows as its square root.
    assert 1 - worst == pytest.approx(1 - best.rate, rel=1e-4)


@pytest.mark.parametrize(("kappa", "beta"), [(1.0, 0.9), (100.0, 0.9), (1e5, 0.9), (30.0, 0.0)])
def test_heavy_ball_at_a_given_momentum_against_a_search(kappa: float, beta: float) -> None:
    best = optimal_rate("heavy-ball", kappa, momentum=beta)
    ends = np.array([1.0, kappa])
    lrs = best.lr * np.append(np.geomspace(0.5, 2, 2001), 1.0)
    worst = [rate("heavy-ball", ends, lr=lr, momentum=beta).max() for lr in lrs]
    assert worst[-1] == pytest.approx(best.rate, abs=1e-14)
    assert min(worst) >= best.rate - 1e-14


CASES = [(1, 20.0, None), (5, 1.0, 0.9), (5, 100.0, 0.9), (5, 300.0, None), (8, 1e6, None)]


@pytest.mark.parametrize(("capacity", "kappa", "beta"), CASES)
def test_critical_momenta_are_optimal(capacity: int, kappa: float, beta: float | None) -> None:
    best = optimal_rate("critical-momenta", kappa, capacity=capacity, momentum=beta)
    # Peaks inside the spectrum count: the grid is fine enough for them.
    h = np.geomspace(1, kappa, 1201)

    def gap(lr: float, momentum: float) -> float:
        ages = range(1, capacity + 1)
        return 1 - rate("critical-momenta", h, lr=lr, momentum=momentum, ages=ages).max()

    reached = 1 - best.rate
    assert gap(best.lr, best.momentum) == pytest.approx(reached, rel=1e-5)
    for lr in best.lr * np.geomspace(0.9, 1.1, 11):
        assert gap(lr, best.momentum) <= reached * (1 + 1e-5)
        for momentum in (best.momentum - 0.01, best.momentum + 0.01):
            if beta is None and momentum >= 0:
                assert gap(lr, momentum) <= reached * (1 + 1e-5)


def test_no_lr_anywhere_is_better_at_a_given_momentum() -> None:
    """A coarse search over all lr, with every curvature: islands of convergence are no help."""
    kappa, beta, ages = 100.0, 0.9, range(1, 6)
    s = np.geomspace(1e-5, 10, 6001)  # a hundredfold is 2000 steps of the grid
    rates = rate("critical-momenta", s / (1 - beta), lr=1.0, momentum=beta, ages=ages)
    worst = np.lib.stride_tricks.sliding_window_view(rates, 2001).max(axis=1)
    best = optimal_rate("critical-momenta", kappa, momentum=beta)
    assert 1 - worst.min() == pytest.approx(1 - best.rate, rel=5e-3)
    assert 1 - best.rate == pytest.approx(6.98e-3, rel=1e-3)
    # Heavy ball is seven times as fast there.
    assert 1 - optimal_rate("heavy-ball", kappa, momentum=beta).rate == pytest.approx(0.05132, 1e-3)


def test_the_best_momentum_is_found_over_its_whole_range() -> None:
    best = optimal_rate("critical-momenta", 100.0)
    others = [
        optimal_rate("critical-momenta", 100.0, momentum=beta).rate
        for beta in np.linspace(0, 0.99, 50)
    ]
    assert best.rate <= min(others)
    assert best.rate == pytest.approx(min(others), abs=2e-3)


def test_the_best_momentum_may_lie_beyond_worse_ones() -> None:
    best, without = (
        optimal_rate("critical-momenta", 10.0, capacity=20, momentum=beta) for beta in (0.56, 0.0)
    )
    free = optimal_rate("critical-momenta", 10.0, capacity=20)
    assert free.rate <= best.rate < without.rate
    assert free.momentum == pytest.approx(0.56, abs=0.02)


def test_of_a_range_of_lr_one_from_its_inside_is_given() -> None:
    best = optimal_rate("critical-momenta", 30.0)
    h = np.geomspace(1, 30, 20001)
    for lr in (best.lr / 1.05, best.lr, best.lr * 1.05):
        worst = rate("critical-momenta", h, lr=lr, momentum=best.momentum).max()
        assert worst == pytest.approx(best.rate, abs=1e-7)


@settings(max_examples=15)
@given(
    kappa=st.floats(1.0, 1e5),
    larger=st.floats(1.0, 10.0),
    beta=st.floats(0.0, 0.95),
    capacity=st.integers(1, 8),
)
def test_a_wider_spectrum_is_never_faster(
    kappa: float, larger: float, beta: float, capacity: int
) -> None:
    narrow, wide = (
        optimal_rate("critical-momenta", k, capacity=capacity, momentum=beta)
        for k in (kappa, kappa * larger)
    )
    assert narrow.rate <= wide.rate < 1


BAD = [
    ({"method": "heavy-bal"}, "did you mean heavy-ball"),
    ({"curvature": [1.0, -2.0]}, "curvature must be finite and ≥ 0, got -2.0"),
    ({"lr": 0.0}, "lr must be a finite number > 0, got 0.0"),
    ({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1.0"),
    ({"ages": [2, 0]}, "ages must be at least 1, got 0"),
    ({"ages": []}, "at least"),
    ({"method": "heavy-ball", "ages": [1]}, "leave ages out"),
]


@pytest.mark.parametrize(("wrong", "message"), BAD)
def test_rate_says_what_is_wrong(wrong: dict[str, object], message: str) -> None:
    good = {"method": "critical-momenta", "curvature": 1.0, "lr": 0.1, "momentum": 0.5}
    with pytest.raises(ValueError, match=message):
        rate(**(good | wrong))


BAD_OPTIMA = [
    (
        {"method": "nesterov"},
        "'nesterov': There are critical-momenta, heavy-ball",
    ),
    ({"condition_number": 0.5}, "condition_number must be a finite number ≥ 1, got 0.5"),
    ({"momentum": -0.1}, r"momentum must be in \[0, 1\), got -0.1"),
    ({"capacity": 0}, "capacity must be at least 1, got 0"),
    ({"method": "heavy-ball", "capacity": 5}, "heavy-ball .*: leave capacity out, got 5"),
    ({"condition_number": 1e14, "momentum": 0.9}, "lost in rounding"),
]


@pytest.mark.parametrize(("wrong", "message"), BAD_OPTIMA)
def test_optimal_rate_says_what_is_wrong(wrong: dict[str, object], message: str) -> None:
    good = {"method": "critical-momenta", "condition_number": 10.0}
    with pytest.raises(ValueError, match=message):
        optimal_rate(**(good | wrong))


NO_NUMBERS = [
    ({"ages": [1.5]}, r"ages must be an integer, got 1\.5"),
    ({"ages": 3}, "ages must be a sequence of integers, got 3"),
    ({"lr": "x"}, "lr must be a number, got 'x'"),
    ({"momentum": "x"}, "momentum must be a number, got 'x'"),
    ({"method": ["heavy-ball"]}, r"method must be a name, got \['heavy-ball'\]"),
]


@pytest.mark.parametrize(("wrong", "message"), NO_NUMBERS)
def test_rate_names_what_is_no_number(wrong: dict[str, object], message: str) -> None:
    good = {"method": "critical-momenta", "curvature": 1.0, "lr": 0.1, "momentum": 0.5}
    with pytest.raises(TypeError, match=message):
        rate(**(good | wrong))


NO_NUMBERS_OF_OPTIMA = [
    ({"capacity": 2.5}, r"capacity must be an integer, got 2\.5"),
    ({"capacity": True}, "capacity must be an integer, got True"),
    ({"condition_number": [1.0, 10.0]}, r"condition_number must be a number, got \[1.0, 10.0\]"),
]


@pytest.mark.parametrize(("wrong", "message"), NO_NUMBERS_OF_OPTIMA)
def test_optimal_rate_names_what_is_no_number(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        optimal_rate(**({"method": "critical-momenta", "condition_number": 10.0} | wrong))


@pytest.mark.parametrize("kappa", [1e27, 1e30, 1e32, 1e34, 1e300])
@pytest.mark.parametrize("momentum", [None, 0.9])
def test_a_rate_that_is_one_in_rounding_is_refused(kappa: float, momentum: float | None) -> None:
    with pytest.raises(ValueError, match="lost in rounding"):
        optimal_rate("heavy-ball", kappa, momentum=momentum)
