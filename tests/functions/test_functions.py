"""Test functions against autograd in float64, against their published forms, and their minima."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from steppe.functions import (
    FUNCTIONS,
    Function,
    ackley,
    beale,
    find_function,
    goldstein_price,
    levy,
    quadratic,
    rosenbrock,
    sharp_flat,
    six_hump_camel,
)

ALL: dict[str, Function] = {
    "ackley": ackley(),
    "ackley, 1": ackley(1),
    "ackley, 5": ackley(5),
    "beale": beale(),
    "goldstein-price": goldstein_price(),
    "levy": levy(),
    "levy, 1": levy(1),
    "levy, 4": levy(4),
    "quadratic": quadratic(),
    "quadratic, 6": quadratic(1e4, 6),
    "rosenbrock": rosenbrock(),
    "rosenbrock, 5": rosenbrock(5),
    "sharp-flat": sharp_flat(),
    "sharp-flat, alike": sharp_flat(2.0, 2.0, 0.3, 5.0),
    "six-hump-camel": six_hump_camel(),
}
# Of one variable or two.
SMALL = {name: function for name, function in ALL.items() if function.dimension <= 2}


def within(function: Function, shares: Tensor, beyond: float = 0.1) -> Tensor:
    """Points of the domain, and a little outside, from numbers in [0, 1)."""
    low, high = torch.tensor(function.bounds, dtype=torch.float64).T
    return low + (high - low) * (shares * (1 + 2 * beyond) - beyond)


def drawn(function: Function, seed: int, count: int = 64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (count, function.dimension)
    return within(function, torch.rand(shape, dtype=torch.float64, generator=generator))


def grid(function: Function, points: int = 401) -> Tensor:
    axes = [torch.linspace(*bounds, points, dtype=torch.float64) for bounds in function.bounds]
    return torch.cartesian_prod(*axes).reshape(-1, function.dimension)


def differentiated(function: Function, points: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients and Hessians of a batch of points by autograd."""
    points = points.detach().requires_grad_(True)
    (gradients,) = torch.autograd.grad(function(points).sum(), points, create_graph=True)
    rows = [
        torch.autograd.grad(each.sum(), points, retain_graph=True, materialize_grads=True)[0]
        for each in gradients.unbind(-1)
    ]
    return gradients.detach(), torch.stack(rows, -2)


@pytest.mark.parametrize("name", ALL)
@given(seed=st.integers(0, 2**31))
@settings(max_examples=10)
def test_derivatives_are_those_of_autograd(name: str, seed: int) -> None:
    function = ALL[name]
    points = drawn(function, seed)
    gradients, hessians = differentiated(function, points)
    torch.testing.assert_close(function.gradient(points), gradients, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(function.hessian(points), hessians, rtol=1e-9, atol=1e-8)


@pytest.mark.parametrize("name", ALL)
def test_what_is_listed_as_a_minimum_is_one(name: str) -> None:
    function = ALL[name]
    points = torch.tensor([each.point for each in function.minima], dtype=torch.float64)
    values = torch.tensor([each.value for each in function.minima], dtype=torch.float64)
    torch.testing.assert_close(function(points), values, rtol=1e-12, atol=1e-12)
    # As exact as the points themselves can be written.
    assert function.gradient(points).abs().max() < 1e-11
    assert torch.linalg.eigvalsh(function.hessian(points)).min() > 0
    lowest = values.min()
    assert [each.is_global for each in function.minima] == (values == lowest).tolist()
    assert values.tolist() == sorted(values)
    low, high = torch.tensor(function.bounds, dtype=torch.float64).T
    assert ((low < points) & (points < high)).all()


@pytest.mark.parametrize("name", SMALL)
def test_no_point_lies_below_the_global_minimum(name: str) -> None:
    function = SMALL[name]
    assert function(grid(function)).min() >= function.minima[0].value - 1e-12


@pytest.mark.parametrize("name", ["beale", "goldstein-price", "quadratic", "six-hump-camel"])
def test_where_all_minima_are_listed_newtons_method_finds_no_others(name: str) -> None:
    function = SMALL[name]
    points = drawn(function, 2, count=2000)
    for _ in range(100):
        step = torch.linalg.lstsq(function.hessian(points), function.gradient(points)[..., None])
        points = points - step.solution[..., 0].clamp(-0.5, 0.5)
    low, high = torch.tensor(function.bounds, dtype=torch.float64).T
    convex = torch.linalg.eigvalsh(function.hessian(points)).min(-1).values > 1e-3
    inside = ((low <= points) & (points <= high)).all(-1)
    found = points[(function.gradient(points).norm(dim=-1) < 1e-9) & inside & convex]
    minima = torch.tensor([each.point for each in function.minima], dtype=torch.float64)
    distances = torch.cdist(found, minima)
    assert (distances.min(dim=1).values < 1e-6).all()
    assert (distances.min(dim=0).values < 1e-6).all()


def published_goldstein_price(x: Tensor, y: Tensor) -> Tensor:
    one = 19 - 14 * x + 3 * x**2 - 14 * y + 6 * x * y + 3 * y**2
    two = 18 - 32 * x + 12 * x**2 + 48 * y - 36 * x * y + 27 * y**2
    return (1 + (x + y + 1) ** 2 * one) * (30 + (2 * x - 3 * y) ** 2 * two)


def published_ackley(*x: Tensor) -> Tensor:
    square = sum(each**2 for each in x) / len(x)
    cosines = sum(torch.cos(2 * math.pi * each) for each in x) / len(x)
    return -20 * torch.exp(-0.2 * torch.sqrt(square)) - torch.exp(cosines) + 20 + math.e


def published_levy(*x: Tensor) -> Tensor:
    w = [1 + (each - 1) / 4 for each in x]
    total = torch.sin(math.pi * w[0]) ** 2
    for each in w[:-1]:
        total = total + (each - 1) ** 2 * (1 + 10 * torch.sin(math.pi * each + 1) ** 2)
    return total + (w[-1] - 1) ** 2 * (1 + torch.sin(2 * math.pi * w[-1]) ** 2)


def published_beale(x: Tensor, y: Tensor) -> Tensor:
    terms = (1.5 - x + x * y, 2.25 - x + x * y**2, 2.625 - x + x * y**3)
    return sum(each**2 for each in terms)


def published_rosenbrock(*x: Tensor) -> Tensor:
    pairs = itertools.pairwise(x)
    return sum(100 * (b - a**2) ** 2 + (a - 1) ** 2 for a, b in pairs)


PUBLISHED: dict[str, Callable[..., Tensor]] = {
    "ackley": published_ackley,
    "ackley, 5": published_ackley,
    "beale": published_beale,
    "goldstein-price": published_goldstein_price,
    "levy": published_levy,
    "levy, 4": published_levy,
    "levy, 1": published_levy,
    "rosenbrock": published_rosenbrock,
    "rosenbrock, 5": published_rosenbrock,
    "quadratic": lambda x, y: (x**2 + 100 * y**2) / 2,
    "six-hump-camel": lambda x, y: 4 * x**2 - 2.1 * x**4 + x**6 / 3 + x * y - 4 * y**2 + 4 * y**4,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_values_are_those_of_the_published_form(name: str) -> None:
    points = drawn(ALL[name], 0)
    torch.testing.assert_close(
        ALL[name](points), PUBLISHED[name](*points.unbind(-1)), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_leading_dimensions_and_types_are_kept(name: str, dtype: torch.dtype) -> None:
    function = ALL[name]
    d = function.dimension
    points = within(function, torch.full((2, 3, d), 0.4, dtype=torch.float64), 0.0).to(dtype)
    for found, shape in (
        (function(points), (2, 3)),
        (function.gradient(points), (2, 3, d)),
        (function.hessian(points), (2, 3, d, d)),
    ):
        assert found.shape == shape
        assert found.dtype == dtype
        assert (found == found[:1, :1]).all()
    assert function(points[0, 0]).shape == ()
    assert function(points[:, :0]).shape == (2, 0)


@pytest.mark.parametrize("dimension", [1, 2, 7])
def test_ackleys_kink_is_flat_for_everybody(dimension: int) -> None:
    function = ackley(dimension)
    point = torch.zeros(1, dimension, dtype=torch.float64)
    smooth = 4 * math.pi**2 * math.e / dimension * torch.eye(dimension, dtype=torch.float64)
    gradients, hessians = differentiated(function, point)
    assert (gradients == 0).all()
    assert (function.gradient(point) == 0).all()
    torch.testing.assert_close(function.hessian(point), smooth[None])
    torch.testing.assert_close(hessians, smooth[None])


@pytest.mark.parametrize("name", ALL)
def test_functional_transforms_go_through(name: str) -> None:
    points = drawn(ALL[name], 1, count=3)
    found = torch.func.vmap(torch.func.grad(ALL[name]))(points)
    torch.testing.assert_close(found, ALL[name].gradient(points))


def test_ackleys_value_near_its_tip_is_not_lost_to_rounding() -> None:
    step = torch.tensor([1e-9, 0.0], dtype=torch.float64)
    # The cone's slope is 4/√d.
    assert ackley()(step).item() == pytest.approx(4 / math.sqrt(2) * 1e-9, rel=1e-6)


def test_a_batch_with_the_kink_in_it_has_gradients_without_nan() -> None:
    points = torch.tensor([[0.0, 0.0], [1.0, 0.5], [0.0, 1.0]], requires_grad=True)
    (gradients,) = torch.autograd.grad(ackley()(points).sum(), points)
    torch.testing.assert_close(gradients, ackley().gradient(points.detach()))


@pytest.mark.parametrize("condition_number", [1.0, 100.0, 1e6])
@pytest.mark.parametrize("dimension", [2, 5])
def test_a_quadratics_curvatures_are_even_by_their_logarithms(
    condition_number: float, dimension: int
) -> None:
    function = quadratic(condition_number, dimension)
    wanted = torch.logspace(0, math.log10(condition_number), dimension, dtype=torch.float64)
    torch.testing.assert_close(torch.tensor(function.curvatures, dtype=torch.float64), wanted)
    point = torch.full((dimension,), 0.3, dtype=torch.float64)
    torch.testing.assert_close(function.hessian(point), torch.diag(wanted))


def test_the_names_are_the_functions_own() -> None:
    for name, make in FUNCTIONS.items():
        assert make().name == name
        assert find_function(name) == make()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ackley(0), ValueError, "dimension must be at least 1, got 0"),
        (lambda: levy(2.0), TypeError, "dimension must be an integer, got 2.0"),  # type: ignore[arg-type]
        (lambda: levy(True), TypeError, "dimension must be an integer, got True"),
        (lambda: rosenbrock(1), ValueError, "dimension must be at least 2, got 1"),
        (lambda: quadratic(0.5), ValueError, "condition_number must be a finite number ≥ 1"),
        (lambda: quadratic(math.nan), ValueError, "condition_number .* got nan"),
        (lambda: quadratic(dimension=1), ValueError, "dimension must be at least 2"),
        (lambda: sharp_flat(-1.0), ValueError, "sharpness must be a finite number > 0, got -1.0"),
        (lambda: sharp_flat(flatness=0.0), ValueError, "flatness .* got 0.0"),
        (lambda: sharp_flat(barrier=-2.0), ValueError, "barrier .* got -2.0"),
        (lambda: sharp_flat(saddle=math.inf), ValueError, "saddle .* got inf"),
        (lambda: find_function("akley"), ValueError, "did you mean ackley"),
        (lambda: find_function("ackley", dimensions=3), ValueError, "did you mean dimension"),
        (lambda: find_function("beale", dimension=3), ValueError, "beale takes no parameter"),
        (lambda: beale()(torch.zeros(3)), ValueError, r"\(\.\.\., 2\) for beale, got \(3,\)"),
        (lambda: ackley(1)(torch.tensor(0.0)), ValueError, r"got \(\)"),
        (lambda: beale().gradient(torch.zeros(4, 1)), ValueError, r"got \(4, 1\)"),
        (lambda: beale().hessian(torch.zeros(2, dtype=torch.int64)), TypeError, "torch.int64"),
    ],
)
def test_mistakes_are_named(
    make: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make()
