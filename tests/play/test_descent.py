"""Descents against float64 recurrences written out here, and each start on its own."""

import math

import numpy as np
import pytest
import torch

from steppe._shared.recipes import find_recipe
from steppe.functions import (
    Function,
    Quadratic,
    ackley,
    beale,
    goldstein_price,
    quadratic,
    rosenbrock,
)
from steppe.play import descend

SETTINGS = {"lr": 0.02, "rho": 0.1, "switch": 0.5}
STARTS = torch.tensor([[-1.2, 1.0], [0.3, -0.7], [2.0, 0.4]], dtype=torch.float64)
NAMES = ["adam", "dualadam-scale-free", "adamcm", "adam+sam", "adamcm+sam", "sgd-momentum", "lion"]
NAMES += ["adam+warmup", "dualadamcm", "sgdcg"]


@pytest.mark.parametrize("name", NAMES)
def test_each_start_is_a_run_of_its_own(name: str) -> None:
    function, recipe = ackley(), find_recipe(name)
    together = descend(function, recipe, SETTINGS, STARTS, 20)
    assert together.points.shape == (3, 21, 2)
    for number, start in enumerate(STARTS):
        alone = descend(function, recipe, SETTINGS, start[None], 20)
        np.testing.assert_allclose(together.points[number], alone.points[0], rtol=1e-12)
    # They do differ, so a buffer or a norm that they shared would have shown.
    assert len(np.unique(together.points[:, -1, 0])) == 3
    np.testing.assert_array_equal(together.points[:, 0], STARTS)
    np.testing.assert_allclose(together.losses, function(torch.from_numpy(together.points)))


def adam(function: Function, start: torch.Tensor, lrs: list[float], ascent: float = 0.0):
    """Adam (Kingma and Ba, algorithm 1) with closed-form gradients, under SAM if ascent > 0."""
    x, m, v = start.clone(), 0.0, 0.0
    path = [x]
    for t, lr in enumerate(lrs, start=1):
        g = function.gradient(x)
        if ascent:
            g = function.gradient(x + ascent * g / (g.norm() + 1e-12))
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        x = x - lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        path.append(x)
    return torch.stack(path).numpy()


def test_adam_is_adam() -> None:
    found = descend(rosenbrock(), find_recipe("adam"), {"lr": 0.03}, STARTS, 30).points[0]
    np.testing.assert_allclose(found, adam(rosenbrock(), STARTS[0], [0.03] * 30), rtol=1e-9)


def test_sam_takes_its_gradient_uphill_from_each_start() -> None:
    settings = {"lr": 0.03, "rho": 0.2}
    found = descend(beale(), find_recipe("adam+sam"), settings, STARTS, 30).points
    for path, start in zip(found, STARTS, strict=True):
        np.testing.assert_allclose(path, adam(beale(), start, [0.03] * 30, ascent=0.2), rtol=1e-8)


def test_a_warm_up_ends_where_the_switch_does() -> None:
    settings = {"lr": 0.03, "switch": 0.25}
    found = descend(rosenbrock(), find_recipe("adam+warmup"), settings, STARTS, 40).points[1]
    lrs = [0.03 * min(1.0, t / 10) for t in range(1, 41)]
    np.testing.assert_allclose(found, adam(rosenbrock(), STARTS[1], lrs), rtol=1e-9)


def test_a_cosine_falls_from_the_whole_rate_to_almost_nothing() -> None:
    found = descend(
        rosenbrock(), find_recipe("adam"), {"lr": 0.03}, STARTS, 40, schedule="cosine"
    ).points
    lrs = [0.03 * math.cos(math.pi * t / 80) ** 2 for t in range(40)]
    np.testing.assert_allclose(found[0], adam(rosenbrock(), STARTS[0], lrs), rtol=1e-9)


def test_a_warm_up_and_a_cosine_multiply() -> None:
    settings = {"lr": 0.03, "switch": 0.25}
    recipe = find_recipe("adam+warmup")
    found = descend(rosenbrock(), recipe, settings, STARTS, 40, schedule="cosine").points[1]
    lrs = [0.03 * min(1.0, (t + 1) / 10) * math.cos(math.pi * t / 80) ** 2 for t in range(40)]
    np.testing.assert_allclose(found, adam(rosenbrock(), STARTS[1], lrs), rtol=1e-9)


def test_an_unknown_schedule_is_named() -> None:
    with pytest.raises(ValueError, match=r"schedule.*'cosin'.*did you mean cosine"):
        descend(beale(), find_recipe("sgd"), {"lr": 0.1}, STARTS, 1, schedule="cosin")


@pytest.mark.thorough
def test_noise_is_gaussian_and_the_same_for_every_optimizer() -> None:
    """On a plain quadratic, SGD's steps give its noise away; SAM's two gradients have the same."""
    starts = torch.zeros(4, 2, dtype=torch.float64)
    settings = {"lr": 0.1, "rho": 0.0}

    def draws(name: str, seed: int) -> np.ndarray:
        function = quadratic(1.0)
        found = descend(function, find_recipe(name), settings, starts, 1000, noise=0.7, seed=seed)
        return (found.points[:, :-1] - found.points[:, 1:]) / 0.1 - found.points[:, :-1]

    first = draws("sgd", 3)
    np.testing.assert_allclose(draws("sgd+sam", 3), first, atol=1e-12)
    np.testing.assert_array_equal(draws("sgd", 3), first)
    assert np.abs(draws("sgd", 4) - first).max() > 1
    assert first.std() == pytest.approx(0.7, rel=0.03)
    assert abs(first.mean()) < 0.02
    # No start's noise is another's, nor one component's the other's.
    components = np.corrcoef(first.transpose(0, 2, 1).reshape(8, -1))
    assert np.abs(components - np.eye(8)).max() < 0.12


def test_what_overflows_stays_lost_and_disturbs_nobody() -> None:
    starts = torch.tensor([[0.0, -1.0], [2.0, 2.0], [0.01, -1.01]], dtype=torch.float64)
    found = descend(goldstein_price(), find_recipe("sgd"), {"lr": 1e-4}, starts, 200)
    lost = np.isnan(found.points).any(-1)
    assert lost.any(1).tolist() == [False, True, False]
    # From the first on.
    assert (np.diff(lost[1].astype(int)) >= 0).all()
    assert (np.isnan(found.losses) == lost).all()
    assert found.losses[2, -1] == pytest.approx(3.0)


def test_what_was_beyond_all_numbers_once_is_lost_for_good() -> None:
    """Momentum carries the point through a place without a value, and out at the other side."""

    class Gap(Quadratic):
        def _value(self, points: torch.Tensor) -> torch.Tensor:
            here = (points[..., 0] > 0.4) & (points[..., 0] < 0.6)
            return torch.where(here, torch.inf, super()._value(points))

    plain = quadratic(1.0)
    function = Gap(plain.name, plain.formula, plain.bounds, plain.minima, plain.curvatures)
    start = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    found = descend(function, find_recipe("sgd-momentum"), {"lr": 0.03}, start, 60)
    finite = np.isfinite(found.losses[0])
    assert finite[0]
    assert finite.tolist() == sorted(finite, reverse=True)
    assert not finite[-1]


@pytest.mark.parametrize(
    ("name", "starts", "steps", "noise", "message"),
    [
        ("sgd", torch.zeros(2), 1, 0.0, r"shape \(starts, 2\) for beale, got \(2,\)"),
        ("sgd", torch.zeros(1, 3), 1, 0.0, r"got \(1, 3\)"),
        ("sgd", torch.zeros(0, 2), 1, 0.0, r"got \(0, 2\)"),
        ("sgd", STARTS, 0, 0.0, "steps must be at least 1, got 0"),
        ("sgd", STARTS, 1, -1.0, "noise must be a finite number ≥ 0, got -1.0"),
        ("lbfgs", STARTS, 1, 0.0, "lbfgs evaluates the function as often as it likes"),
    ],
)
def test_mistakes_are_named(
    name: str, starts: torch.Tensor, steps: int, noise: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        descend(beale(), find_recipe(name), {"lr": 0.1}, starts, steps, noise=noise)
