"""The curvature along an optimizer's next update, against steps that are taken."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import steppe
from helpers.stateful_model import snapshot
from steppe.landscape import hessian, update_sharpness


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


@pytest.fixture
def data() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(12, 4, generator=generator, dtype=torch.float64)
    return [(x[:8], torch.arange(8) % 3), (x[8:], torch.arange(4) % 3)]


def loss_of(model, data) -> torch.Tensor:
    x, y = (torch.cat(part) for part in zip(*data, strict=True))
    return F.cross_entropy(model(x), y)


def flat(model) -> torch.Tensor:
    return torch.cat([param.detach().flatten().clone() for param in model.parameters()])


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "Muon": lambda p: torch.optim.Muon([x for x in p if x.ndim == 2], lr=0.01),
    "DualAdam": lambda p: steppe.DualAdam(p, lr=0.01, total_steps=10),
    "AdamCM": lambda p: steppe.AdamCM(p, lr=0.01),
    "SAM's base": lambda p: steppe.SAM(torch.optim.SGD(p, lr=0.1)).base_optimizer,
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_is_that_of_the_step_which_is_then_taken(model, data, name: str) -> None:
    optimizer = OPTIMIZERS[name](list(model.parameters()))
    for _ in range(3):
        optimizer.zero_grad()
        loss_of(model, data).backward()
        optimizer.step()
    optimizer.zero_grad()
    found = update_sharpness(model, F.cross_entropy, data, optimizer)
    H = hessian(model, F.cross_entropy, data)
    dense = H.matmat(torch.eye(H.size, dtype=torch.float64))
    before = flat(model)
    loss_of(model, data).backward()
    g = torch.cat([param.grad.flatten() for param in model.parameters()])
    optimizer.step()
    u = flat(model) - before
    torch.testing.assert_close(found.update, u, rtol=1e-9, atol=1e-12)
    assert found.value == pytest.approx(float(u @ dense @ u / (u @ u)), rel=1e-8)
    assert found.slope == pytest.approx(float(g @ u), rel=1e-8)
    assert found.bend == pytest.approx(float(u @ dense @ u / 2), rel=1e-8)
    assert found.norm == pytest.approx(float(u.norm()), rel=1e-8)
    assert 0 <= found.error < 1e-10


def test_tells_the_change_of_the_loss(model, data) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    found = update_sharpness(model, F.cross_entropy, data, optimizer)
    before = loss_of(model, data)
    before.backward()
    optimizer.step()
    change = float((loss_of(model, data) - before).detach())
    assert change == pytest.approx(found.slope + found.bend, rel=1e-5)
    assert change != pytest.approx(found.slope, rel=1e-5)


def test_leaves_all_as_it_was(model, data) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    calls: list[object] = []
    optimizer.register_step_post_hook(lambda *args: calls.append(args))
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    loss_of(model, data).backward()
    optimizer.step()
    model[0].weight.grad = torch.full((5, 4), 3.0, dtype=torch.float64)
    before, state = snapshot(model), json.dumps(optimizer.state_dict(), default=torch.Tensor.tolist)
    update_sharpness(model, F.cross_entropy, data, optimizer)
    assert snapshot(model) == before
    assert json.dumps(optimizer.state_dict(), default=torch.Tensor.tolist) == state
    assert len(calls) == 1
    assert scheduler.last_epoch == 0


def test_some_parameters_are_those_of_the_whole_step(model, data) -> None:
    """Of AdamCM too, which goes by the norm of all gradients."""
    optimizer = steppe.AdamCM(model.parameters(), lr=0.01)
    whole = update_sharpness(model, F.cross_entropy, data, optimizer)
    part = update_sharpness(model, F.cross_entropy, data, optimizer, params="2")
    torch.testing.assert_close(part.update, whole.update[25:])
    H = hessian(model, F.cross_entropy, data, params="2")
    u = part.update
    assert part.value == pytest.approx(float(u @ H.matvec(u) / (u @ u)))
    assert set(part.to_dict()) == {"value", "error", "slope", "bend", "norm"}


def test_released_gradients_and_frozen_parameters(model, data) -> None:
    model[0].requires_grad_(False)
    optimizer = steppe.DualAdam(model.parameters(), lr=0.01)
    expected = update_sharpness(model, F.cross_entropy, data, optimizer)
    optimizer.release_gradients(model)
    found = update_sharpness(model, F.cross_entropy, data, optimizer)
    assert found.to_dict() == expected.to_dict()
    assert found.update.shape == (18,)
    assert not optimizer.state


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda m: torch.optim.SGD(m.parameters(), lr=0.0), ValueError, "has the norm 0"),
        (lambda m: torch.optim.SGD(nn.Linear(2, 2).parameters()), ValueError, "has the norm 0"),
        (lambda m: torch.optim.SGD(m.parameters(), lr=1e400), ValueError, "norm (inf|nan)"),
        (lambda m: torch.optim.LBFGS(m.parameters()), TypeError, "this LBFGS cannot take a step"),
        (
            lambda m: steppe.SAM(torch.optim.SGD(m.parameters())),
            TypeError,
            "this SAM cannot take a step.* pass its base_optimizer",
        ),
        (lambda m: m, TypeError, "optimizer must be an optimizer, got Sequential"),
    ],
    ids=["lr 0", "others", "overflow", "LBFGS", "SAM", "model"],
)
def test_what_has_no_update_is_refused(model, data, make, error, message: str) -> None:
    optimizer = make(model)
    before = snapshot(model)
    with pytest.raises(error, match=message):
        update_sharpness(model, F.cross_entropy, data, optimizer)
    assert snapshot(model) == before
