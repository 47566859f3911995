"""Lines and planes against quadratic forms; the model left as found, and what goes wrong."""

import json
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from helpers.stateful_model import restless, snapshot
from steppe.landscape import Line, Plane, Trajectory, hessian, line, plane, top_eigenvalues

SIZE = 3


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().mean() / 2


def numbers(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


X, Y, D1, D2 = numbers(10, SIZE), numbers(10, 1, seed=1), numbers(SIZE, seed=2), numbers(SIZE)
# The last batch is ragged: batches count by their size.
DATA = [(X[:4], Y[:4]), (X[4:8], Y[4:8]), (X[8:], Y[8:])]


def linear() -> nn.Linear:
    model = nn.Linear(SIZE, 1, bias=False, dtype=torch.float64)
    model.weight.data = numbers(1, SIZE, seed=3)
    return model


def loss_at(w: Tensor) -> float:
    return ((X @ w - Y[:, 0]).square().mean() / 2).item()


def quadratic(center: Tensor, steps: Tensor) -> np.ndarray:
    """L(c + s) = L(c) + g·s + ½ sᵀHs for each row s, from the dense gradient and Hessian."""
    H, g = X.T @ X / len(X), X.T @ (X @ center - Y[:, 0]) / len(X)
    rises = steps @ g + ((steps @ H) * steps).sum(dim=1) / 2
    return loss_at(center) + rises.numpy()


def grid(a: np.ndarray, b: np.ndarray, d1: Tensor, d2: Tensor) -> Tensor:
    return torch.stack([x * d1 + y * d2 for y in b for x in a])


def interrupting(at_call: int) -> Callable[[Tensor, Tensor], Tensor]:
    calls = 0

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == at_call:
            raise KeyboardInterrupt
        return half_square(outputs, targets)

    return loss_fn


def walk(points: list[list[float]]) -> Trajectory:
    path = Trajectory()
    for point in points:
        path.record([torch.tensor(point)])
    return path


def test_the_line_of_a_quadratic_loss_is_its_parabola() -> None:
    model = linear()
    found = line(model, half_square, DATA, direction=D1, reach=2.0, points=9)
    np.testing.assert_allclose(found.coordinates, np.linspace(-2, 2, 9), atol=1e-15)
    expected = quadratic(
        model.weight[0].detach(), torch.from_numpy(found.coordinates)[:, None] * D1
    )
    np.testing.assert_allclose(found.losses, expected, rtol=1e-13)
    curvature = (found.losses[3] - 2 * found.losses[4] + found.losses[5]) / 0.5**2
    assert curvature == pytest.approx((D1 @ (X.T @ X / len(X)) @ D1).item())
    assert found.loss == found.losses[4] == pytest.approx(loss_at(model.weight[0].detach()))
    assert (found.samples, found.train, found.complete) == (10, False, True)


def test_along_an_eigenvector_the_curvature_is_its_eigenvalue() -> None:
    top = top_eigenvalues(hessian(linear(), half_square, DATA), k=1)
    found = line(linear(), half_square, DATA, direction=top.vectors[:, 0], points=3)
    curvature = found.losses[0] - 2 * found.losses[1] + found.losses[2]
    assert curvature == pytest.approx(top.values[0])


@pytest.mark.parametrize("points", [3, 75])
def test_the_middle_of_an_odd_number_of_points_is_the_parameters(points: int) -> None:
    found = line(linear(), half_square, DATA, direction=D1, reach=0.3, points=points)
    assert found.coordinates[points // 2] == 0.0
    assert found.losses[points // 2] == found.loss


def test_the_plane_of_a_quadratic_loss_is_its_quadratic_form() -> None:
    model = linear()
    found = plane(model, half_square, DATA, directions=(D1, D2), reach=2.0, points=4)
    assert found.losses.shape == (4, 4)
    expected = quadratic(model.weight[0].detach(), grid(found.a, found.b, D1, D2))
    np.testing.assert_allclose(found.losses.ravel(), expected, rtol=1e-13)
    assert found.loss == pytest.approx(loss_at(model.weight[0].detach()))
    assert (found.samples, found.path, found.explained) == (10, None, None)
    assert (found.train, found.complete) == (False, True)


def test_the_plane_of_a_trajectory_goes_through_its_last_record_and_covers_it() -> None:
    points = [[4.0, 0.0, 1.0], [2.0, 1.0, 0.5], [1.0, 1.0, 0.0], [0.5, 0.0, 0.0]]
    path = walk(points)
    found = plane(linear(), half_square, DATA, directions=path, points=5)
    last, d = torch.tensor(points[-1]).double(), path.pca().directions
    expected = quadratic(last, grid(found.a, found.b, d[0], d[1]))
    np.testing.assert_allclose(found.losses.ravel(), expected, rtol=1e-12)
    assert found.loss == pytest.approx(loss_at(last))
    np.testing.assert_array_equal(found.path, path.pca().coordinates)
    np.testing.assert_array_equal(found.explained, path.pca().explained)
    lows, highs = found.path.min(axis=0), found.path.max(axis=0)
    margin = 0.2 * (highs - lows).max()
    for steps, low, high in zip((found.a, found.b), lows, highs, strict=True):
        np.testing.assert_allclose([steps[0], steps[-1]], [low - margin, high + margin])


def test_reach_decides_how_much_is_shown_around_the_last_record() -> None:
    path = walk([[4.0, 0.0, 1.0], [2.0, 1.0, 0.5], [0.5, 0.0, 0.0]])
    found = plane(linear(), half_square, DATA, directions=path, reach=0.5, points=3)
    assert found.a.tolist() == found.b.tolist() == [-0.5, 0.0, 0.5]
    assert found.losses[1, 1] == found.loss


@pytest.mark.parametrize("surface", [line, plane])
def test_the_seed_decides_the_random_directions(surface: Callable[..., Line | Plane]) -> None:
    def losses(seed: int) -> list[float]:
        return surface(linear(), half_square, DATA, points=3, seed=seed).losses.ravel().tolist()

    assert losses(5) == losses(5)
    assert losses(5) != losses(6)


def test_the_random_line_is_as_long_as_the_parameters() -> None:
    """Of a loss that is the distance moved, with two filters of lengths 3 and 4 and a bias."""
    model = nn.Linear(2, 2).double()
    model.weight.data = torch.tensor([[3.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    before = model.weight.detach().clone()

    def distance(outputs: Tensor, targets: Tensor) -> Tensor:
        return (model.weight - before).norm()

    found = line(model, distance, [(torch.ones(1, 2).double(), torch.ones(1))], points=3)
    np.testing.assert_allclose(found.losses, [5.0, 0.0, 5.0])


def test_moves_the_chosen_parameters_only() -> None:
    model = nn.Linear(SIZE, 1).double()
    found = line(
        model, half_square, DATA, params=[model.bias], direction=torch.ones(1), reach=1, points=3
    )
    with torch.no_grad():
        residuals = model(X) - Y
    expected = [(residuals + a).square().mean().item() / 2 for a in (-1, 0, 1)]
    np.testing.assert_allclose(found.losses, expected)


def test_batches_can_be_mappings() -> None:
    class Keyworded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = linear()

        def forward(self, features: Tensor, labels: Tensor) -> dict[str, Tensor]:
            return {"loss": half_square(self.layer(features), labels)}

    mappings = [{"features": x, "labels": y} for x, y in DATA]
    found = line(Keyworded(), None, mappings, direction=D1, points=3)
    plain = line(linear(), half_square, DATA, direction=D1, points=3)
    assert found.to_dict() == plain.to_dict()


def test_train_uses_batch_statistics_and_the_same_masks_everywhere() -> None:
    norm = nn.BatchNorm1d(SIZE, dtype=torch.float64)
    model = nn.Sequential(norm, nn.Dropout(0.5), linear())
    dead = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    model.register_parameter("dead", dead)
    found = line(
        model, half_square, DATA, params=[dead], direction=torch.ones(1), points=4, train=True
    )
    assert found.train
    assert set(found.losses) == {found.loss}
    model[1].p = 0.0
    found = line(
        model, half_square, DATA, params=[dead], direction=torch.ones(1), points=3, train=True
    )
    expected = sum(len(x) * half_square(model(x), y).item() for x, y in DATA) / len(X)
    assert found.loss == pytest.approx(expected)


def test_each_point_is_of_the_same_samples() -> None:
    """A shuffled loader that drops its last batch leaves out the same in each pass."""
    model = linear()
    data = DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True, drop_last=True)
    found = line(model, half_square, data, direction=D1 * 1e-30, points=5)
    assert set(found.losses) == {found.loss}
    assert found.samples == 8


@pytest.mark.parametrize("how", ["ends", "fails", "is interrupted"])
@pytest.mark.parametrize("surface", [line, plane])
def test_leaves_the_model_as_found(surface: Callable[..., Line | Plane], how: str) -> None:
    model = restless()
    inputs = torch.randn(6, 3)
    before = snapshot(model)
    calls = 0

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        # Two batches: the fourth call is at the first place, away from the centre.
        if how != "ends" and calls == 4:
            raise RuntimeError("no more") if how == "fails" else KeyboardInterrupt
        return outputs.square().mean()

    def measure() -> None:
        data = [(inputs[:4], inputs), (inputs[4:], inputs)]
        # Given the weight, the loss is not called to find it.
        surface(model, loss_fn, data, points=np.int64(3), train=True, weight="samples")

    if how == "ends":
        measure()
    else:
        with pytest.raises(RuntimeError if how == "fails" else KeyboardInterrupt):
            measure()
    assert snapshot(model) == before


def test_a_trajectory_does_not_move_the_model() -> None:
    model = linear()
    before = snapshot(model)
    path = walk([[4.0, 0.0, 1.0], [2.0, 1.0, 0.5], [0.5, 0.0, 0.0]])
    plane(model, half_square, DATA, directions=path, points=3)
    assert snapshot(model) == before


def overflowing(outputs: Tensor, targets: Tensor) -> Tensor:
    """Infinite above 1, and beyond 2 the difference of infinities."""
    largest = outputs.mean()
    infinite = torch.where(largest > 1, math.inf, largest.square())
    return torch.where(largest > 2, infinite - infinite, infinite)


def test_where_the_loss_overflows_it_is_infinite() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    data = [(torch.ones(2, 1), torch.ones(2, 1))]
    found = line(model, overflowing, data, direction=torch.ones(1), reach=3, points=7)
    assert found.losses.tolist() == [9.0, 4.0, 1.0, 0.0, 1.0, math.inf, math.inf]
    assert found.complete
    found.plot().figure.draw_without_rendering()


def test_ctrl_c_leaves_what_there_is() -> None:
    # Two calls compare passes. Of three batches each: three at the centre, six at two places.
    found = line(linear(), interrupting(13), DATA, direction=D1, points=5, weight="samples")
    whole = line(linear(), half_square, DATA, direction=D1, points=5)
    assert not found.complete
    np.testing.assert_array_equal(found.losses[:2], whole.losses[:2])
    assert np.isnan(found.losses[2:]).all()
    found.plot().figure.draw_without_rendering()


@pytest.mark.parametrize("done", [1, 3, 7])
def test_ctrl_c_leaves_rows_of_a_plane(done: int) -> None:
    directions = (D1, D2)
    loss_fn = interrupting(2 + 3 + 3 * done + 1)
    found = plane(linear(), loss_fn, DATA, directions=directions, points=5, weight="samples")
    whole = plane(linear(), half_square, DATA, directions=directions, points=5)
    assert not found.complete
    np.testing.assert_array_equal(found.losses.ravel()[:done], whole.losses.ravel()[:done])
    assert np.isnan(found.losses.ravel()[done:]).all()
    found.plot().figure.draw_without_rendering()


@pytest.mark.parametrize("at_call", [1, 6])
def test_ctrl_c_before_there_is_anything_goes_on(at_call: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        line(linear(), interrupting(at_call), DATA, direction=D1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reach": 0.0}, "reach must be a finite number above 0, got 0.0"),
        ({"reach": math.nan}, "reach must be a finite number above 0, got nan"),
        ({"points": 2}, "points=2 must be an integer of at least 3"),
        ({"points": 4.5}, "points=4.5 must be an integer of at least 3"),
    ],
)
@pytest.mark.parametrize("surface", [line, plane])
def test_refuses_a_grid_out_of_range(
    surface: Callable[..., Line | Plane], options: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        surface(linear(), half_square, DATA, **options)


def test_refuses_a_direction_of_another_length() -> None:
    with pytest.raises(ValueError, match=r"direction has shape \(2,\), expected \(3,\)"):
        line(linear(), half_square, DATA, direction=torch.ones(2))


@pytest.mark.parametrize(
    ("directions", "message"),
    [
        ([D1], "directions has 1 elements, expected two vectors"),
        (torch.eye(3), "directions has 3 elements, expected two vectors"),
        ([D1, D1[:2]], r"directions\[1\] has shape \(2,\), expected \(3,\)"),
        ([D1, -2 * D1], "directions are parallel"),
        (walk([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]), "of 2 elements, params have 3"),
    ],
)
def test_refuses_directions_that_span_no_plane(directions: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plane(linear(), half_square, DATA, directions=directions)


@pytest.mark.parametrize("surface", [line, plane])
def test_refuses_a_loss_that_is_not_finite_at_the_centre(
    surface: Callable[..., Line | Plane],
) -> None:
    with pytest.raises(ValueError, match="the loss of batch 0 is nan"):
        surface(linear(), half_square, [(X * math.nan, Y)])


def test_results_can_be_written_as_json() -> None:
    path = walk([[4.0, 0.0, 1.0], [2.0, 1.0, 0.5], [0.5, 0.0, 0.0]])
    written = json.loads(
        json.dumps(plane(linear(), half_square, DATA, directions=path, points=3).to_dict())
    )
    assert np.shape(written["losses"]) == (3, 3)
    assert np.shape(written["path"]) == (3, 2)


def test_a_line_is_drawn_on_a_scale_that_shows_its_minimum() -> None:
    found = line(linear(), half_square, DATA, direction=D1, points=5)
    assert found.plot().get_yscale() == "linear"
    found = line(linear(), half_square, DATA, direction=D1, reach=100.0, points=5)
    axes = found.plot()
    assert axes.get_yscale() == "log"
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), found.losses)
    assert "loss" in axes.get_ylabel()


def levels_of(found: Plane) -> np.ndarray:
    axes = found.plot()
    axes.figure.draw_without_rendering()
    return np.asarray(axes.collections[0].levels)


def test_contours_are_at_equal_ratios_where_the_range_is_large() -> None:
    steps = np.diff(levels_of(plane(linear(), half_square, DATA, reach=0.1, points=5)))
    np.testing.assert_allclose(steps, steps[0])
    wide = levels_of(plane(linear(), half_square, DATA, reach=100.0, points=5))
    np.testing.assert_allclose(wide[1:] / wide[:-1], wide[1] / wide[0])


def test_a_minimum_of_zero_is_drawn_in_the_lowest_colour() -> None:
    """On a logarithmic scale it would be a hole."""
    steps = np.linspace(-1.0, 1.0, 5)
    losses = np.add.outer(steps**2, steps**2)
    axes = Plane(steps, steps, losses, 0.0, 1, None, None, False, True).plot()
    axes.figure.draw_without_rendering()
    filled = axes.collections[0]
    assert filled.zmin == filled.levels[0] > 0


def test_a_trajectory_is_drawn_in_its_plane() -> None:
    path = walk([[4.0, 0.0, 1.0], [2.0, 1.0, 0.5], [0.5, 0.0, 0.0]])
    found = plane(linear(), half_square, DATA, directions=path, points=5)
    axes = found.plot()
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), found.path)
    assert f"{found.explained[0]:.1%}" in axes.get_xlabel()


@pytest.mark.parametrize("elsewhere", [1.0, math.inf])
def test_a_plane_without_contours_is_drawn_too(elsewhere: float) -> None:
    model = linear()
    before = model.weight.detach().clone()

    def flat(outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.tensor(1.0 if torch.equal(model.weight, before) else elsewhere)

    axes = plane(model, flat, DATA, reach=0.5, points=4).plot()
    axes.figure.draw_without_rendering()
    assert not axes.collections
    assert axes.get_xlim() == (-0.5, 0.5)
