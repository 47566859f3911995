"""What a run reports of its curvature, against dense matrices."""

import math
import signal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import steppe
from steppe.compare.metrics.curvature import (
    CurvatureSettings,
    batch_size_for,
    measure,
    measure_quickly,
)
from steppe.compare.records.results import Curvature

Batches = list[tuple[torch.Tensor, torch.Tensor]]


def ended(optimizer_class, **options) -> tuple[nn.Module, Batches, torch.optim.Optimizer]:
    """Return a small network after some steps, its data in ragged batches, and its optimizer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))
    inputs = torch.randn(40, 4)
    targets = (inputs.sum(1) > 0).long()
    optimizer = optimizer_class(model.parameters(), **options)
    for _ in range(10):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    batches = list(zip(inputs.split(15), targets.split(15), strict=True))
    return model, batches, optimizer


def dense(model: nn.Module, batches: Batches) -> tuple[np.ndarray, float]:
    """Return the Hessian, and the rise of the loss one step of 0.05 up the gradient, in float64."""
    model = model.double()
    inputs = torch.cat([x for x, _ in batches]).double()
    targets = torch.cat([y for _, y in batches])
    names, params = zip(*model.named_parameters(), strict=True)

    def loss(vector: torch.Tensor) -> torch.Tensor:
        parts = vector.split([p.numel() for p in params])
        values = {n: v.view_as(p) for n, v, p in zip(names, parts, params, strict=True)}
        return F.cross_entropy(torch.func.functional_call(model, values, inputs), targets)

    start = torch.cat([p.detach().reshape(-1) for p in params])
    gradient = torch.autograd.functional.jacobian(loss, start)
    rise = loss(start + 0.05 * gradient / gradient.norm()) - loss(start)
    return torch.autograd.functional.hessian(loss, start).numpy(), rise.item()


@pytest.mark.parametrize(
    ("cls", "threshold"),
    [(torch.optim.AdamW, 38.0), (steppe.DualAdam, 38.0), (torch.optim.SGD, 2.0)],
)
def test_is_the_dense_hessians(cls, threshold: float) -> None:
    model, batches, optimizer = ended(cls, lr=0.01)
    quick = measure_quickly(model, F.cross_entropy, batches)
    found = measure(model, F.cross_entropy, batches, optimizer)
    assert (quick.sharpness, quick.largest) == (found.sharpness, found.largest)
    assert math.isnan(quick.trace)
    assert quick.density == ()
    assert found.threshold == pytest.approx(threshold / 0.01)
    H, rise = dense(model, batches)
    values = np.linalg.eigvalsh(H)
    assert found.sharpness == pytest.approx(rise, rel=1e-3)
    assert found.largest == pytest.approx(values[np.abs(values).argmax()], rel=0.01)
    # Three standard errors of Hutch++ from 18 products, as it estimates them itself.
    assert found.trace == pytest.approx(np.trace(H), abs=1.7)
    if cls is torch.optim.SGD:
        assert found.preconditioned == pytest.approx(values.max(), rel=0.01)
    grid, heights = np.array(found.density).T
    assert np.trapezoid(heights, grid) == pytest.approx(1, abs=0.03)
    assert grid[0] < values[0]
    assert values[-1] < grid[-1]


def test_adams_preconditioner_is_the_dense_one() -> None:
    """λ_max of P^{−1/2} H P^{−1/2} with P = √v̂ + ε."""
    model, batches, optimizer = ended(torch.optim.AdamW, lr=0.01)
    found = measure(model, F.cross_entropy, batches, optimizer).preconditioned
    state = [optimizer.state[p] for p in model.parameters()]
    P = torch.cat([((s["exp_avg_sq"] / (1 - 0.999**10)).sqrt() + 1e-8).reshape(-1) for s in state])
    root = P.double().rsqrt().numpy()
    H, _ = dense(model, batches)
    expected = np.linalg.eigvalsh(root[:, None] * H * root).max()
    assert found == pytest.approx(expected, rel=0.01)


def test_a_tiny_models_trace_is_exact() -> None:
    torch.manual_seed(0)
    model = nn.Linear(2, 2)
    batches = [(torch.randn(9, 2), torch.arange(9) % 2)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = measure(model, F.cross_entropy, batches, optimizer)
    assert found.trace == pytest.approx(np.trace(dense(model, batches)[0]), rel=1e-5)


def test_sam_has_the_preconditioner_of_its_base() -> None:
    model, batches, base = ended(steppe.DualAdam, lr=0.01)
    plain = measure(model, F.cross_entropy, batches, base)
    around = measure(model, F.cross_entropy, batches, steppe.SAM(base))
    assert around.preconditioned == plain.preconditioned
    assert around.threshold == plain.threshold


def test_an_optimizer_without_a_preconditioner_has_no_threshold() -> None:
    model, batches, _ = ended(torch.optim.SGD, lr=0.01)
    found = measure(model, F.cross_entropy, batches, torch.optim.LBFGS(model.parameters()))
    assert found.largest > 0
    assert math.isnan(found.preconditioned)
    assert math.isnan(found.threshold)


@pytest.mark.thorough
def test_ctrl_c_is_meant_for_the_run() -> None:
    """Instruments return what they have then; a run must not be kept with that."""
    model, batches, optimizer = ended(torch.optim.SGD, lr=0.01)
    before = signal.getsignal(signal.SIGINT)
    seen: list[int] = []
    last = 0

    def impatient(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        seen.append(1)
        if len(seen) == last:
            signal.raise_signal(signal.SIGINT)
        return F.cross_entropy(outputs, targets)

    measure(model, impatient, batches, optimizer)
    calls = len(seen) - 3
    while last < calls:
        last += 3
        seen.clear()
        with pytest.raises(KeyboardInterrupt):
            measure(model, impatient, batches, optimizer)
    assert signal.getsignal(signal.SIGINT) is before


def test_what_has_not_converged_is_not_told() -> None:
    model, batches, optimizer = ended(torch.optim.SGD, lr=0.01)
    found = measure(model, F.cross_entropy, batches, optimizer, CurvatureSettings(max_products=1))
    assert math.isnan(found.largest)
    assert math.isnan(found.preconditioned)
    assert found.trace > 0


class WrongSquare(torch.autograd.Function):
    """x², in whose derivative the slope of what follows is taken for a constant."""

    @staticmethod
    def forward(ctx, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return grad.detach() * 2 * x


class Square(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return WrongSquare.apply(x)


def test_of_a_wrong_second_derivative_nothing_is_told() -> None:
    model, batches, optimizer = ended(torch.optim.SGD, lr=0.01)
    model[1] = Square()
    found = measure(model, F.cross_entropy, batches, optimizer)
    assert found.sharpness > 0
    assert math.isnan(found.largest)
    assert math.isnan(found.trace)
    assert found.density == ()


def test_of_a_large_model_only_sharpness_and_the_largest_eigenvalue_are_measured() -> None:
    model, batches, optimizer = ended(torch.optim.SGD, lr=0.01)
    found = measure(model, F.cross_entropy, batches, optimizer, CurvatureSettings(full=False))
    assert found == measure_quickly(model, F.cross_entropy, batches)
    assert found.largest > 0


@pytest.mark.parametrize("parameters", [1, 10_000])
def test_of_too_many_parameters_there_is_sharpness_alone(parameters: int) -> None:
    model, batches, optimizer = ended(torch.optim.SGD, lr=0.01)
    found = measure(
        model, F.cross_entropy, batches, optimizer, CurvatureSettings(max_parameters=parameters)
    )
    assert found.sharpness == measure_quickly(model, F.cross_entropy, batches).sharpness
    assert all(math.isnan(each) == (parameters == 1) for each in (found.largest, found.trace))


def test_where_derivatives_are_not_finite_there_is_none() -> None:
    model, batches, optimizer = ended(torch.optim.SGD, lr=0.01)

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(outputs, targets) + (0 * outputs).sum().sqrt()

    found = measure(model, loss, batches, optimizer)
    assert found.density == ()
    numbers = [value for name, value in vars(found).items() if name != "density"]
    assert len(numbers) == 5
    assert all(map(math.isnan, numbers))
    assert vars(found).keys() == vars(Curvature()).keys()


def test_large_models_are_measured_in_parts() -> None:
    assert batch_size_for(nn.Linear(999, 1000)) == CurvatureSettings().samples
    assert batch_size_for(nn.Linear(1000, 1000)) == 100
