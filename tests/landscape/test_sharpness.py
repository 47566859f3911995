"""SAM-sharpness against closed forms and a dense computation, and the model left as found."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steppe.landscape import sharpness


def mean_output(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.mean()


def linear(weights: list[float], dtype: torch.dtype = torch.float64) -> nn.Linear:
    model = nn.Linear(len(weights), 1, bias=False, dtype=dtype)
    model.weight.data = torch.tensor([weights], dtype=dtype)
    return model


def batches(inputs: Tensor, targets: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(inputs.split(size), targets.split(size), strict=True))


def test_of_a_linear_loss_is_rho_times_the_norm_of_the_gradient() -> None:
    inputs = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    result = sharpness(linear([0.5, -1.0]), mean_output, [(inputs, inputs)], rho=0.2)
    assert result.value == pytest.approx(0.2 * 5.0, rel=1e-12)
    assert result.loss == pytest.approx(0.5 * 3 - 4.0)
    assert result.perturbed_loss == pytest.approx(result.loss + result.value)
    assert (result.rho, result.samples) == (0.2, 1)


def test_of_a_quadratic_loss_has_a_second_order_term() -> None:
    """L = ½ wᵀAw: the rise along u = Aw/‖Aw‖ is ρ‖Aw‖ + ½ρ² uᵀAu."""
    a, w, rho = np.diag([1.0, 9.0, 0.25]), np.array([1.0, -0.3, 2.0]), 0.1
    # The mean over three samples of ½(xᵢ·w)², with rows x of √(3A), is ½ wᵀAw.
    inputs = torch.tensor(np.sqrt(3 * a))
    result = sharpness(
        linear(w.tolist()),
        lambda outputs, targets: outputs.square().mean() / 2,
        [(inputs, inputs)],
        rho=rho,
    )
    gradient = a @ w
    u = gradient / np.linalg.norm(gradient)
    expected = rho * np.linalg.norm(gradient) + rho**2 / 2 * u @ a @ u
    assert result.value == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("size", [1, 4, 7, 10])
def test_is_over_samples_whatever_the_batches(size: int) -> None:
    """Ten samples in batches of 4, 4, 2 or 7, 3 are as one, and as logistic regression in NumPy."""
    random = np.random.default_rng(1)
    x, y, w = random.normal(size=(10, 3)), random.integers(0, 2, 10), random.normal(size=3)
    result = sharpness(
        linear(w.tolist()),
        lambda outputs, targets: F.binary_cross_entropy_with_logits(outputs[:, 0], targets),
        batches(torch.tensor(x), torch.tensor(y, dtype=torch.float64), size),
        rho=0.3,
    )

    def loss(w: np.ndarray) -> float:
        return float(np.mean(np.log1p(np.exp(x @ w)) - y * (x @ w)))

    gradient = x.T @ (1 / (1 + np.exp(-x @ w)) - y) / 10
    expected = loss(w + 0.3 * gradient / np.linalg.norm(gradient)) - loss(w)
    assert result.value == pytest.approx(expected, rel=1e-10)
    assert result.samples == 10


def test_sums_the_norm_in_float64() -> None:
    """Squares of 1e25 overflow float32."""
    inputs = torch.full((1, 2), 1e25)
    result = sharpness(linear([0.0, 0.0], torch.float32), mean_output, [(inputs, inputs)], rho=1.0)
    assert result.value == pytest.approx(math.sqrt(2) * 1e25, rel=1e-6)


def test_perturbs_only_what_requires_a_gradient() -> None:
    model = nn.Linear(1, 1, dtype=torch.float64)
    model.bias.requires_grad_(False)
    inputs = torch.ones(2, 1, dtype=torch.float64)
    # With the bias the gradient (1, 1) would have the norm √2.
    assert sharpness(model, mean_output, [(inputs, inputs)], rho=0.5).value == pytest.approx(0.5)


def test_at_a_stationary_point_is_zero() -> None:
    inputs = torch.zeros(2, 1, dtype=torch.float64)
    assert sharpness(linear([1.0]), mean_output, [(inputs, inputs)]).value == 0.0


class Restless(nn.Module):
    """Changes a buffer, replaces another, and draws random numbers at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
        self.unused = nn.Parameter(torch.ones(2))
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        self.last = torch.rand(())
        return self.body(inputs)


def snapshot(model: nn.Module) -> list[object]:
    tensors = [*model.parameters(), *model.buffers()]
    return [
        [tensor.tolist() for tensor in tensors],
        [tensor.data_ptr() for tensor in tensors],
        [None if p.grad is None else p.grad.tolist() for p in model.parameters()],
        [module.training for module in model.modules()],
        torch.get_rng_state().tolist(),
    ]


@pytest.mark.parametrize("fails", [False, True])
def test_leaves_the_model_as_found(fails: bool) -> None:
    model = Restless()
    inputs = torch.randn(6, 3)
    model(inputs).sum().backward()
    model.body[1].eval()
    before = snapshot(model)
    seen = 0

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal seen
        seen += 1
        # Two batches: the fourth call is in the perturbed pass, which must be undone as well.
        if fails and seen == 4:
            raise RuntimeError("no more")
        return outputs.square().mean()

    if fails:
        with pytest.raises(RuntimeError, match="no more"):
            sharpness(model, loss_fn, batches(inputs, inputs, 3))
    else:
        sharpness(model, loss_fn, batches(inputs, inputs, 3))
    assert snapshot(model) == before


def test_is_taken_in_eval_mode() -> None:
    torch.manual_seed(0)
    plain = nn.Linear(3, 1)
    model = nn.Sequential(nn.Dropout(0.9), plain)
    inputs = torch.randn(5, 3)
    with_dropout = sharpness(model, mean_output, [(inputs, inputs)])
    assert with_dropout == sharpness(plain, mean_output, [(inputs, inputs)])


@pytest.mark.parametrize("rho", [0.0, -0.1, math.inf, math.nan])
def test_refuses_a_radius_out_of_range(rho: float) -> None:
    inputs = torch.ones(1, 1)
    with pytest.raises(ValueError, match="rho must be a finite number above 0"):
        sharpness(nn.Linear(1, 1), mean_output, [(inputs, inputs)], rho=rho)


def test_refuses_a_model_without_trainable_parameters() -> None:
    inputs = torch.ones(1, 1)
    with pytest.raises(ValueError, match="no parameter"):
        sharpness(nn.Linear(1, 1).requires_grad_(False), mean_output, [(inputs, inputs)])


def test_refuses_no_data() -> None:
    with pytest.raises(ValueError, match="data is empty"):
        sharpness(nn.Linear(1, 1), mean_output, [])


def test_refuses_data_that_can_be_read_only_once() -> None:
    inputs = torch.ones(1, 1)
    with pytest.raises(ValueError, match="not a generator"):
        sharpness(nn.Linear(1, 1), mean_output, (pair for pair in [(inputs, inputs)]))


def test_refuses_a_loss_that_is_not_finite() -> None:
    inputs = torch.full((1, 1), math.nan)
    with pytest.raises(ValueError, match="loss is not finite"):
        sharpness(nn.Linear(1, 1), mean_output, [(inputs, inputs)])
