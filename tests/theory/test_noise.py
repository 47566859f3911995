"""Noise that is known: linear regression, whose gradients and curvature are closed forms."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from helpers.stateful_model import restless, snapshot
from steppe.compare import find_task
from steppe.landscape import hessian, top_eigenvalues
from steppe.theory import gradient_noise


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().mean() / 2


def regression(samples: int) -> tuple[nn.Linear, Tensor, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(samples, 3, dtype=torch.float64)
    y = x @ torch.tensor([[1.0], [-2.0], [0.5]], dtype=torch.float64)
    y += 0.3 * torch.randn(samples, 1, dtype=torch.float64)
    return nn.Linear(3, 1, bias=False, dtype=torch.float64), x, y


DIRECTION = torch.tensor([1.0, 2.0, -2.0], dtype=torch.float64)


def batches(x: Tensor, y: Tensor, *sizes: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(x.split(list(sizes)), y.split(list(sizes)), strict=True))


def test_single_samples_give_their_own_variance() -> None:
    model, x, y = regression(40)
    found = gradient_noise(model, half_square, batches(x, y, *[1] * 40), DIRECTION)
    each = (((x @ model.weight.T - y) * x) @ (DIRECTION / 3)).detach()
    assert found.variance == pytest.approx(each.var().item(), rel=1e-12)
    assert found.slope == pytest.approx(each.mean().item(), rel=1e-12)
    h = ((x @ DIRECTION / 3) ** 2).mean().item()
    assert found.curvature == pytest.approx(h, rel=1e-12)
    assert found.ratio == pytest.approx(each.var().item() / h, rel=1e-12)
    assert (found.batches, found.samples) == (40, 40)


def test_the_standard_error_is_the_jackknifes() -> None:
    model, x, y = regression(12)
    data = batches(x, y, 1, 2, 1, 3, 1, 1, 3)
    found = gradient_noise(model, half_square, data, DIRECTION)
    without = torch.tensor(
        [
            gradient_noise(model, half_square, data[:i] + data[i + 1 :], DIRECTION).variance
            for i in range(7)
        ]
    )
    expected = math.sqrt(6 / 7 * (without - without.mean()).square().sum())
    assert found.standard_error == pytest.approx(expected)
    assert found.ratio_standard_error == pytest.approx(expected / found.curvature)


def test_batches_of_any_sizes_are_unbiased() -> None:
    """Over many draws, ragged batches give the same variance as single samples."""
    model, x, y = regression(4000)
    model.weight.data = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
    sizes = [3, 8, 1, 12, 5, 11] * 100
    truth = (((x @ model.weight.T - y) * x) @ (DIRECTION / 3)).detach().var().item()
    found = gradient_noise(model, half_square, batches(x, y, *sizes), DIRECTION)
    assert found.samples == 4000
    assert abs(found.variance - truth) < 2 * found.standard_error
    assert found.standard_error < 0.1 * truth


def test_at_a_regressions_minimum_noise_is_curvature_times_the_residuals() -> None:
    """C = σ²·H there, σ being the scatter of the targets: the theory's law, with a factor σ²."""
    model, x, y = regression(6000)
    model.weight.data = torch.linalg.lstsq(x, y).solution.T.contiguous()
    found = gradient_noise(model, half_square, batches(x, y, *[10] * 600), DIRECTION)
    assert found.slope == pytest.approx(0.0, abs=1e-12)
    assert abs(found.ratio - 0.3**2) < 3 * found.ratio_standard_error


def test_several_directions_give_their_covariance() -> None:
    model, x, y = regression(40)
    rows = torch.tensor([[1.0, 2.0, -2.0], [0.0, 3.0, 4.0]], dtype=torch.float64)
    data = batches(x, y, *[1] * 25, *[3] * 5)
    found = gradient_noise(model, half_square, data, rows)
    units = rows / rows.norm(dim=1, keepdim=True)
    single = gradient_noise(model, half_square, batches(x, y, *[1] * 40), rows)
    each = (((x @ model.weight.T - y) * x) @ units.T).detach()
    np.testing.assert_allclose(single.variance, np.cov(each.T.numpy()), rtol=1e-12)
    np.testing.assert_allclose(single.slope, each.mean(dim=0), rtol=1e-12)
    np.testing.assert_allclose(single.curvature, units @ (x.T @ x / 40) @ units.T, rtol=1e-12)
    alone = [gradient_noise(model, half_square, data, row) for row in rows]
    for name in ("variance", "standard_error", "curvature"):
        ours = np.diagonal(getattr(found, name))
        np.testing.assert_allclose(ours, [getattr(one, name) for one in alone], rtol=1e-12)
    for name in ("slope", "ratio", "ratio_standard_error"):
        theirs = [getattr(one, name) for one in alone]
        np.testing.assert_allclose(getattr(found, name), theirs, rtol=1e-12)


def test_leaves_the_model_as_found() -> None:
    model = restless()
    data = [(torch.randn(2, 3), torch.zeros(2, 4)) for _ in range(4)]
    size = sum(p.numel() for p in model.parameters())
    before = snapshot(model)
    gradient_noise(model, half_square, data, torch.ones(size))
    assert snapshot(model) == before


@pytest.mark.parametrize(
    ("sizes", "direction", "message"),
    [
        ((2, 2), DIRECTION, "data has 2 batches: the variance needs at least 3"),
        ((2, 1, 1), torch.ones(2), r"direction has shape \(2,\), expected \(3,\)"),
        ((2, 1, 1), torch.zeros(3), "direction is zero"),
    ],
)
def test_mistakes_are_named(sizes: tuple[int, ...], direction: Tensor, message: str) -> None:
    model, x, y = regression(4)
    with pytest.raises(ValueError, match=message):
        gradient_noise(model, half_square, batches(x, y, *sizes), direction)


def test_a_direction_is_a_tensor() -> None:
    model, x, y = regression(4)
    with pytest.raises(TypeError, match="direction must be a tensor, got list"):
        gradient_noise(model, half_square, batches(x, y, 2, 1, 1), [1.0, 2.0, 3.0])


def test_a_trained_networks_noise_is_that_of_its_samples() -> None:
    """Along the Hessian's top eigenvector and a random direction, against one sample at a time."""
    torch.manual_seed(0)
    task, data = find_task("digits").task().load()
    model, train = task.model().double(), data.train
    x, y = train.__getitems__(list(range(150)))
    x = x.double()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        task.loss(model(x), y).backward()
        optimizer.step()
    top = top_eigenvalues(hessian(model, task.loss, [(x, y)]), 1).vectors[:, 0]
    random = torch.randn(len(top), generator=torch.Generator().manual_seed(1)).double()
    directions = torch.stack([top, random / random.norm()])
    single = list(zip(x.split(1), y.split(1), strict=True))
    found = gradient_noise(model, task.loss, single, directions)
    params = {name: p.detach() for name, p in model.named_parameters()}
    samples = torch.func.vmap(
        torch.func.grad(
            lambda w, one, target: task.loss(
                torch.func.functional_call(model, w, one[None]), target[None]
            )
        ),
        in_dims=(None, 0, 0),
    )(params, x, y)
    each = torch.cat([part.flatten(1) for part in samples.values()], dim=1) @ directions.T
    np.testing.assert_allclose(found.variance, np.cov(each.T.numpy()), rtol=1e-8)
    # The noise follows the curvature over orders of magnitude, and is less than the theory's.
    assert found.curvature[0, 0] > 100 * abs(found.curvature[1, 1])
    assert (found.ratio < 1.0).all()
    assert 0.2 < found.ratio[0] / found.ratio[1] < 5.0
