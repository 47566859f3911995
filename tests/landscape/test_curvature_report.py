"""The report card is what its parts say, and survives Ctrl-C."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import steppe
from helpers.known_spectra import dense_hessian, outermost, small_network
from helpers.stateful_model import snapshot
from steppe.landscape import CurvatureReport, profile

pytestmark = pytest.mark.thorough


def trained() -> tuple[nn.Module, Any, list[Any], torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    inputs = torch.randn(30, 4, dtype=torch.float64)
    targets = (inputs.sum(1) > 0).long()
    optimizer = steppe.AdamCM(model.parameters(), lr=0.01)
    loss_fn = nn.CrossEntropyLoss()
    for _ in range(20):
        optimizer.zero_grad()
        loss_fn(model(inputs), targets).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model, loss_fn, [(inputs[:20], targets[:20]), (inputs[20:], targets[20:])], optimizer


@pytest.mark.thorough
def test_is_the_dense_hessians() -> None:
    card = profile(*small_network())
    dense = dense_hessian()
    assert card.parameters == 610
    assert card.samples == 1797
    np.testing.assert_allclose(card.top.values, outermost(dense, 5, "LM"), rtol=1e-3)
    np.testing.assert_allclose(card.bottom.values, outermost(dense, 1, "SA"), rtol=1e-3)
    assert abs(card.trace.value - dense.trace().item()) < 5 * card.trace.stderr
    assert abs(card.density.trace - dense.trace().item()) < 4 * card.density.trace_stderr
    # Along an eigenvector the loss bends as the eigenvalue says.
    step = card.steepest.coordinates[13]
    below, above = card.steepest.losses[[11, 13]]
    bend = (below - 2 * card.loss + above) / step**2
    assert bend == pytest.approx(card.top.values[0], rel=0.1)
    assert card.preconditioned is None
    assert card.threshold is None
    assert card.complete


def test_the_optimizers_preconditioner_is_in_it() -> None:
    model, loss_fn, data, optimizer = trained()
    card = profile(model, loss_fn, data, optimizer)
    P = torch.cat([optimizer.preconditioner()[p].reshape(-1) for p in model.parameters()])
    H = steppe.landscape.hessian(model, loss_fn, data).matmat(torch.eye(37).double())
    values = np.linalg.eigvalsh((P.sqrt()[:, None] * H * P.sqrt()).numpy())
    assert card.preconditioned.values[0] == pytest.approx(values[-1], rel=1e-3)
    assert card.threshold == pytest.approx(3800.0)
    assert f"{values[-1] / 3800:.1%} of it: stable" in str(card)
    optimizer.param_groups[0]["lr"] = 1e3
    assert "unstable" in str(profile(model, loss_fn, data, optimizer))


def test_around_gradient_descent_the_threshold_is_sams_own() -> None:
    """Long and Bartlett's: SAM is unstable where the base would be at λ + ρλ²/‖g‖."""
    model, loss_fn, data, adam = trained()
    base = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.5)
    plain = profile(model, loss_fn, data, base)
    assert (plain.threshold, plain.is_sams) == (pytest.approx(6.0), False)
    card = profile(model, loss_fn, data, steppe.SAM(base, rho=0.3))
    assert card.is_sams
    edge = card.threshold
    assert edge + 0.3 * edge**2 / card.gradient_norm == pytest.approx(6.0)
    assert "threshold of SAM" in str(card)
    assert card.preconditioned.values[0] == pytest.approx(plain.preconditioned.values[0])
    around = profile(model, loss_fn, data, steppe.SAM(adam, rho=0.3))
    assert (around.threshold, around.is_sams) == (pytest.approx(3800.0), False)


def test_the_model_is_left_as_found() -> None:
    model, loss_fn, data, optimizer = trained()
    before = snapshot(model)
    state = optimizer.state_dict()
    profile(model, loss_fn, data, optimizer)
    assert snapshot(model) == before
    assert str(optimizer.state_dict()) == str(state)


def test_same_seed_same_card() -> None:
    model, loss_fn, data, optimizer = trained()
    one, two = (profile(model, loss_fn, data, optimizer, seed=3) for _ in range(2))
    assert one.to_dict() == two.to_dict()


@pytest.mark.parametrize("calls", [40, 180])
def test_ctrl_c_leaves_what_there_is(calls: int) -> None:
    model, loss_fn, data, _ = trained()
    seen = []

    def impatient(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        seen.append(1)
        if len(seen) > calls:
            raise KeyboardInterrupt
        return loss_fn(outputs, targets)

    card = profile(model, impatient, data)
    assert not card.complete
    assert card.loss > 0
    assert (card.trace is None) == (calls == 40)
    assert card.random is None
    assert len(str(card).splitlines()) == len(card.rows())
    card.figure()


def test_can_be_printed_written_and_drawn(tmp_path) -> None:
    model, loss_fn, data, optimizer = trained()
    card = profile(model, loss_fn, data, optimizer, k=2)
    written = json.loads(json.dumps(card.to_dict()))
    assert written["top"]["values"] == pytest.approx(card.top.values.tolist())
    assert [row[0] for row in card.rows()][:4] == ["loss", "gradient norm", "λ_max", "λ_2"]
    assert card.table("Card").row_count == len(card.rows())
    figure = card.figure()
    titles = [axes.get_title(loc="left") for axes in figure.axes[:3]]
    assert titles == ["Eigenvalues", "Spectral density", "Loss along two directions"]
    figure.savefig(tmp_path / "card.png")
    assert len(card.plot().lines) == 2


def test_refuses_narrow_parameters_before_it_begins() -> None:
    with pytest.raises(ValueError, match=r"profile needs .*'weight' is torch\.bfloat16"):
        profile(nn.Linear(2, 1).bfloat16(), nn.functional.mse_loss, [])


def test_a_card_without_measurements_can_still_be_shown() -> None:
    card = CurvatureReport(2, 3, False, 0.5, 0.1, products=0, complete=False)
    assert str(card).startswith("loss")
    card.figure()


class Square(nn.Module):
    """±|w|², of a parameter without filters."""

    def __init__(self, sign: float) -> None:
        super().__init__()
        self.point, self.sign = nn.Parameter(torch.tensor([1.0, 2.0, 3.0])), sign

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.sign * self.point.square().sum()


@pytest.mark.parametrize(("sign", "name"), [(1.0, "λ_max"), (-1.0, "λ_1"), (0.0, "λ_max")])
def test_where_there_is_no_filter_or_no_positive_curvature(sign: float, name: str) -> None:
    card = profile(Square(sign), lambda outputs, _: outputs, [(torch.ones(2, 1), torch.ones(2))])
    assert card.complete
    assert card.random is None
    names = [row[0] for row in card.rows()]
    assert names[2] == name
    assert ("trace / λ_max" in names) == (sign > 0)
    card.figure()
