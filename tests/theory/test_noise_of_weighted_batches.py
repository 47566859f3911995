"""Noise of losses that are divided by something else than the number of samples."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steppe.theory import gradient_noise, predict_escape

D = torch.float64
G = torch.Generator().manual_seed(0)
X, Y = torch.randn(24, 3, dtype=D, generator=G), torch.arange(24) % 3
FLOATS = torch.randn(24, 2, dtype=D, generator=G)
DIRECTION = torch.arange(1.0, 13.0, dtype=D)
UNIT = DIRECTION / DIRECTION.norm()


def linear(outputs: int = 3) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, outputs).to(D)


def slope(model: nn.Module, loss: Tensor) -> float:
    parts = torch.autograd.grad(loss, list(model.parameters()))
    flat = torch.cat([part.reshape(-1) for part in parts])
    return float(flat @ (DIRECTION[: len(flat)] / DIRECTION[: len(flat)].norm()))


def batches(targets: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(X.split(size), targets.split(size), strict=True))


def test_ignored_targets_count_for_nothing() -> None:
    targets, model = Y.clone(), linear()
    targets[[1, 2, 5, 8, 9]] = -100
    found = gradient_noise(model, F.cross_entropy, batches(targets, 4), DIRECTION)
    assert found.slope == pytest.approx(slope(model, F.cross_entropy(model(X), targets)))
    assert (found.batches, found.samples) == (6, 24)


def test_batches_of_ignored_targets_are_left_out() -> None:
    targets, model = Y.clone(), linear()
    targets[[0, 5, 6, 11]] = -100
    found = gradient_noise(model, F.cross_entropy, batches(targets, 1), DIRECTION)
    kept = targets != -100
    each = torch.tensor(
        [
            slope(model, F.cross_entropy(model(x[None]), y[None]))
            for x, y in zip(X[kept], Y[kept], strict=True)
        ]
    )
    assert found.variance == pytest.approx(each.var().item())
    assert found.slope == pytest.approx(each.mean().item())
    assert (found.batches, found.samples) == (20, 20)
    with pytest.raises(ValueError, match="data has 0 batches"):
        gradient_noise(model, F.cross_entropy, batches(torch.full_like(Y, -100), 4), DIRECTION)


def test_means_over_elements_are_the_samples() -> None:
    model = linear(2)
    by_sample = lambda outputs, targets: (outputs - targets).square().mean(1).mean()  # noqa: E731
    data = batches(FLOATS, 5)
    found, expected = (
        gradient_noise(model, loss, data, DIRECTION[:8]) for loss in (F.mse_loss, by_sample)
    )
    assert found.variance == pytest.approx(expected.variance)
    assert found.standard_error == pytest.approx(expected.standard_error)


@pytest.mark.parametrize(
    ("loss_fn", "weight", "message"),
    [
        (nn.MSELoss(reduction="sum"), None, "the loss is a sum over samples"),
        (F.mse_loss, "sum", "the loss is a sum over samples"),
        (lambda outputs, targets: F.mse_loss(outputs, targets, reduction="sum"), None, "no mean"),
    ],
)
def test_refuses_what_is_no_mean(loss_fn: Any, weight: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gradient_noise(linear(2), loss_fn, batches(FLOATS, 5), DIRECTION[:8], weight=weight)


def test_a_weight_of_ones_own_is_taken() -> None:
    model, mask = linear(2), (torch.arange(24) % 5 > 1).to(D)

    def masked(outputs: Tensor, targets: Tensor) -> Tensor:
        return ((outputs - targets[:, :2]).square().mean(1) * targets[:, 2]).sum() / weight(
            outputs, targets
        )

    def weight(outputs: Tensor, targets: Tensor) -> float:
        return float(targets[:, 2].sum())

    both = torch.cat([FLOATS, mask[:, None]], 1)
    found = gradient_noise(model, masked, batches(both, 5), DIRECTION[:8], weight=weight)
    assert found.slope == pytest.approx(slope(model, masked(model(X), both)))


def test_an_escape_is_predicted_with_a_weight() -> None:
    left, right = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    nn.init.constant_(left.weight, -1.0)
    nn.init.constant_(right.weight, 1.0)

    def double_well(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.square() - 1).square().sum() / 4

    data = [(torch.ones(size, 1), torch.zeros(size, 1)) for size in (3, 1)]
    found = predict_escape(
        left, right, double_well, data, method="adam", lr=0.001, batch_size=4, weight="sum"
    )
    assert found.barrier == pytest.approx(1.0)
