"""What a run reports of its curvature, against dense matrices."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import steppe
from steppe.compare.curvature import Curvature, measure
from steppe.landscape import sharpness


def ended(optimizer_class, **options):
    """Return a small network after some steps, its data and its optimizer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))
    inputs = torch.randn(40, 4)
    targets = (inputs.sum(1) > 0).long()
    optimizer = optimizer_class(model.parameters(), **options)
    for _ in range(10):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    return model, inputs, targets, optimizer


def dense(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> np.ndarray:
    model = model.double()
    names, params = zip(*model.named_parameters(), strict=True)

    def loss(vector: torch.Tensor) -> torch.Tensor:
        parts = vector.split([p.numel() for p in params])
        values = {n: v.view_as(p) for n, v, p in zip(names, parts, params, strict=True)}
        return F.cross_entropy(torch.func.functional_call(model, values, inputs.double()), targets)

    start = torch.cat([p.detach().reshape(-1) for p in params])
    return torch.autograd.functional.hessian(loss, start).numpy()


@pytest.mark.parametrize(
    ("cls", "threshold"),
    [(torch.optim.AdamW, 38.0), (steppe.DualAdam, 38.0), (torch.optim.SGD, 2.0)],
)
def test_is_the_dense_hessians(cls, threshold: float) -> None:
    model, inputs, targets, optimizer = ended(cls, lr=0.01)
    found = measure(model, F.cross_entropy, inputs, targets, optimizer)
    rise = sharpness(model, F.cross_entropy, [(inputs, targets)]).value
    assert found.sharpness == pytest.approx(rise, rel=1e-4)
    assert found.threshold == pytest.approx(threshold / 0.01)
    if cls is torch.optim.SGD:
        assert found.preconditioned == pytest.approx(found.largest, rel=0.02)
    H = dense(model, inputs, targets)
    values = np.linalg.eigvalsh(H)
    assert found.largest == pytest.approx(values[np.abs(values).argmax()], rel=0.01)
    assert found.trace == pytest.approx(np.trace(H), rel=0.2)


def test_an_optimizer_without_a_preconditioner_has_no_threshold() -> None:
    model, inputs, targets, _ = ended(torch.optim.SGD, lr=0.01)
    optimizer = torch.optim.LBFGS(model.parameters())
    found = measure(model, F.cross_entropy, inputs, targets, optimizer)
    assert found.largest > 0
    assert math.isnan(found.preconditioned)
    assert math.isnan(found.threshold)


def test_ctrl_c_is_meant_for_the_run() -> None:
    """Instruments return what they have then; a run must not be kept with that."""
    model, inputs, targets, optimizer = ended(torch.optim.SGD, lr=0.01)
    seen: list[int] = []
    last = 0

    def impatient(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        seen.append(1)
        if len(seen) == last:
            raise KeyboardInterrupt
        return F.cross_entropy(outputs, targets)

    measure(model, impatient, inputs, targets, optimizer)
    calls = len(seen)
    while last < calls:
        last += 1
        seen.clear()
        with pytest.raises(KeyboardInterrupt):
            measure(model, impatient, inputs, targets, optimizer)


def test_what_has_not_converged_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs, targets, optimizer = ended(torch.optim.SGD, lr=0.01)
    monkeypatch.setattr("steppe.compare.curvature._MOST_PRODUCTS", 1)
    found = measure(model, F.cross_entropy, inputs, targets, optimizer)
    assert math.isnan(found.largest)
    assert math.isnan(found.preconditioned)
    assert found.trace > 0


def test_only_the_first_samples_are_looked_at_for_the_hessian(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, inputs, targets, optimizer = ended(torch.optim.SGD, lr=0.01)
    few = measure(model, F.cross_entropy, inputs[:15], targets[:15], optimizer)
    monkeypatch.setattr("steppe.compare.curvature.SAMPLES", 15)
    found = measure(model, F.cross_entropy, inputs, targets, optimizer)
    assert found.largest == few.largest
    assert found.sharpness != few.sharpness


def test_where_derivatives_are_not_finite_there_is_none() -> None:
    model, inputs, targets, optimizer = ended(torch.optim.SGD, lr=0.01)

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(outputs, targets) + (0 * outputs).sum().sqrt()

    found = measure(model, loss, inputs, targets, optimizer)
    assert all(map(math.isnan, vars(found).values()))
    assert vars(found).keys() == vars(Curvature()).keys()
