"""SAM's edge of stability, against simulated steps on quadratics."""

import math

import pytest
import torch
from torch import nn

import steppe
from steppe.landscape import Monitor
from steppe.landscape.operators.stability_of_sam import sam_threshold

ETA = 0.1


def sam_step(curvature: float, start: float, rho: float) -> float:
    """Take a step of SAM around gradient descent on ½·curvature·w²."""
    w = torch.tensor([start], dtype=torch.float64, requires_grad=True)
    sam = steppe.SAM(torch.optim.SGD([w], lr=ETA), rho=rho)

    def closure() -> torch.Tensor:
        sam.zero_grad()
        loss = 0.5 * curvature * w.square().sum()
        loss.backward()
        return loss

    sam.step(closure)
    return w.item()


@pytest.mark.parametrize("rho", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("start", [-2.0, 0.3, 5.0])
def test_steps_grow_above_the_threshold_and_shrink_below(rho: float, start: float) -> None:
    """At the curvature λ and the gradient's norm g = λ|w|, just above and just below."""
    # Where λ = threshold(λ|w|): ηλ(|w| + ρ) = 2|w|.
    edge = 2 * abs(start) / (ETA * (abs(start) + rho))
    assert sam_threshold(2 / ETA, edge * abs(start), rho) == pytest.approx(edge)
    for curvature in (0.5 * edge, 0.99 * edge, 1.01 * edge, 2 * edge):
        threshold = sam_threshold(2 / ETA, curvature * abs(start), rho)
        grows = abs(sam_step(curvature, start, rho)) > abs(start)
        assert grows == (curvature > threshold)


@pytest.mark.parametrize("norm", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("rho", [1e-9, 0.05, 2.0])
def test_it_is_long_and_bartletts_formula(norm: float, rho: float) -> None:
    formula = norm / (2 * rho) * (math.sqrt(1 + 8 * rho / (ETA * norm)) - 1)
    # For a small radius the formula as written cancels.
    assert sam_threshold(2 / ETA, norm, rho) == pytest.approx(formula, rel=1e-4)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_with_momentum_the_gradients_norm_held(momentum: float) -> None:
    rho, norm = 0.5, 2.0
    edge = sam_threshold(2 * (1 + momentum) / ETA, norm, rho)
    for curvature, diverges in ((0.99 * edge, False), (1.01 * edge, True)):
        w, m = 1.0, 0.0
        for _ in range(5000):
            m = momentum * m + curvature * w * (1 + rho * curvature / norm)
            w -= ETA * m
            if abs(w) > 1e3:
                break
        assert (abs(w) > 1e3) == diverges


def test_limits() -> None:
    assert sam_threshold(20.0, 1.0, 0.0) == 20.0
    assert sam_threshold(20.0, 0.0, 0.1) == 0.0
    assert sam_threshold(20.0, 1.0, 1e-12) == pytest.approx(20.0)


def measured(make) -> dict[str, float]:
    torch.manual_seed(0)
    model = nn.Linear(3, 1).double()
    inputs, targets = torch.randn(8, 3).double(), torch.randn(8, 1).double()
    loss = nn.MSELoss()
    sam = make(list(model.parameters()))
    monitor = Monitor(model, loss, [(inputs, targets)], sam, every=1)
    for _ in range(2):
        sam.zero_grad()
        loss(model(inputs), targets).backward()
        with sam.perturbed():
            loss(model(inputs), targets).backward()
        sam.step()
        monitor.step()
    return monitor.history[-1].values


def test_the_monitor_tells_it() -> None:
    values = measured(lambda p: steppe.SAM(torch.optim.SGD(p, lr=ETA), rho=0.2))
    g = values["gradient_norm"]
    expected = g / 0.4 * (math.sqrt(1 + 1.6 / (ETA * g)) - 1)
    assert values["sam_threshold"] == pytest.approx(expected)
    assert values["sam_threshold"] < values["threshold"]


def test_before_sam_begins_it_is_the_bases() -> None:
    values = measured(
        lambda p: steppe.SAM(torch.optim.SGD(p, lr=ETA), rho=0.2, start=0.9, total_steps=100)
    )
    assert values["sam_threshold"] == pytest.approx(2 / ETA)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: steppe.SAM(torch.optim.AdamW(p)),
        lambda p: steppe.SAM(torch.optim.SGD(p, lr=ETA), metric="adaptive"),
        lambda p: steppe.SAM(torch.optim.SGD(p, lr=ETA, momentum=0.9), direction="momentum"),
        lambda p: steppe.SAM(
            torch.optim.SGD([{"params": p[:1], "rho": 0.1}, {"params": p[1:]}], lr=ETA), rho=0.2
        ),
    ],
)
def test_where_none_is_known_none_is_told(make) -> None:
    assert "sam_threshold" not in measured(make)
