"""Where descents ended, on paths made up so that the answer is known."""

import math

import numpy as np
import pytest

from steppe.functions import Function, ackley, goldstein_price, levy, sharp_flat, six_hump_camel
from steppe.play import Descent
from steppe.play.end_points import EndPoint, arrival_radius, classify_ends


def ended(function: Function, *path: object) -> EndPoint:
    points = np.array([path], dtype=float).reshape(1, len(path), function.dimension)
    return classify_ends(function, Descent("adam", {"lr": 0.1}, points, points[..., 0]))[0]


def test_reach_is_half_a_percent_of_the_diagonal() -> None:
    assert arrival_radius(goldstein_price()) == pytest.approx(0.005 * math.sqrt(32))
    assert arrival_radius(ackley(3)) == pytest.approx(0.005 * 10 * math.sqrt(3))


def test_arrival_is_when_a_run_comes_to_stay() -> None:
    near, far = (0.01, -1.01), (0.5, 0.5)
    assert ended(goldstein_price(), far, near, far, near, near) == EndPoint(
        "global", (0.0, -1.0), 3
    )
    assert ended(goldstein_price(), near, near).arrival == 0
    assert ended(goldstein_price(), near, far).kind == "none"
    just_outside = (0.0, -1.0 + 1.01 * arrival_radius(goldstein_price()))
    assert ended(goldstein_price(), near, just_outside) == EndPoint("none")


def test_other_minima_are_named_and_have_no_arrival() -> None:
    assert ended(goldstein_price(), (1.0, 1.0), (1.81, 0.21)) == EndPoint("another", (1.8, 0.2))


@pytest.mark.parametrize("function", [six_hump_camel(), sharp_flat()])
def test_of_several_global_minima_it_is_the_one_that_was_reached(function: Function) -> None:
    for minimum in function.minima[:2]:
        assert ended(function, minimum.point) == EndPoint("global", minimum.point, 0)


@pytest.mark.parametrize(
    ("function", "place"), [(ackley(), (3.0, -7.0)), (levy(), (1.0, 5.0)), (ackley(3), (1, 2, 3))]
)
def test_minima_that_are_not_listed_are_found(function: Function, place: tuple[float, ...]) -> None:
    import torch

    found = ended(function, place)
    assert found.kind == "another"
    assert found.arrival is None
    assert found.minimum is not None
    point = torch.tensor(found.minimum, dtype=torch.float64)
    assert function.gradient(point).norm() < 1e-4
    assert torch.linalg.eigvalsh(function.hessian(point)).min() > 0
    assert math.dist(found.minimum, place) <= arrival_radius(function)


def test_a_slope_and_a_saddle_are_no_minimum() -> None:
    # Half-way between Ackley's dents, on the slope of Goldstein-Price, and on the camel's saddle.
    assert ended(ackley(), (3.5, 0.0)).kind == "none"
    assert ended(goldstein_price(), (-1.5, 1.5)).kind == "none"
    assert ended(six_hump_camel(), (0.0, 0.0)).kind == "none"
    # Near a listed minimum, but not near enough.
    assert ended(ackley(), (0.6, 0.0)).kind == "none"


def test_what_is_not_finite_has_diverged() -> None:
    assert ended(ackley(), (1.0, 1.0), (math.nan, math.nan)) == EndPoint("diverged")
