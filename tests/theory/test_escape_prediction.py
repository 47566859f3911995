"""Ways whose curvatures and barrier are known: parabolas that meet, and the double well."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.stateful_model import snapshot
from helpers.torch_defaults import DEFAULTS, torch_default
from steppe.theory import escape_time, predict_escape

DATA = [(torch.full((2, 1), x).double(), torch.zeros(2, 1).double()) for x in (0.9, 1.0, 1.1)]
STEP = {"lr": 1e-3, "batch_size": 4.0}


def at(weight: float) -> nn.Linear:
    model = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    nn.init.constant_(model.weight, weight)
    return model


SHARP, SADDLE, HEIGHT = 6.0, 2.0, 1.5
TOP = math.sqrt(2 * HEIGHT * (SHARP + SADDLE) / (SHARP * SADDLE))
JOINT = TOP * SADDLE / (SHARP + SADDLE)


def parabolas(outputs: Tensor, targets: Tensor) -> Tensor:
    """Join a well about 0, and the saddle's parabola which are symmetric about the top."""
    near, far = (SHARP * w.square() / 2 for w in (outputs, outputs - 2 * TOP))
    saddle = HEIGHT - SADDLE * (outputs - TOP).square() / 2
    wells = torch.where(outputs < TOP, near, far)
    return torch.where((outputs - TOP).abs() < TOP - JOINT, saddle, wells).mean()


def double_well(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.square() - 1).square().mean()


def tilted(outputs: Tensor, targets: Tensor) -> Tensor:
    return ((outputs.square() - 1).square() + 0.3 * outputs).mean()


ONES = [(torch.ones(4, 1).double(), torch.zeros(4, 1).double())]


@pytest.mark.parametrize(
    ("method", "alpha"), [("sgd", None), ("adam", None), ("invadam", None), ("dualadam", 0.3)]
)
@pytest.mark.parametrize("regime", ["local", "frozen"])
def test_parabolas_give_the_formula(method: str, alpha: float | None, regime: str) -> None:
    found = predict_escape(
        at(0.0), at(2 * TOP), parabolas, ONES, method=method, alpha=alpha, regime=regime,
        **STEP, points=201,
    )  # fmt: skip
    assert found.barrier == pytest.approx(HEIGHT, rel=1e-6)
    assert found.where == pytest.approx(0.5, abs=1e-6)
    assert (found.h_min, found.h_saddle) == pytest.approx((SHARP, SADDLE))
    assert found.s == pytest.approx(SADDLE / (SHARP + SADDLE), rel=0.05)
    truth = escape_time(
        method, **STEP, barrier=HEIGHT, h_min=SHARP, h_saddle=SADDLE, s=found.s,
        alpha=alpha, regime=regime,
    )  # fmt: skip
    assert found.escape.exponent == pytest.approx(truth.exponent, rel=1e-6)
    assert found.escape.prefactor == pytest.approx(truth.prefactor, rel=1e-6)


def test_the_double_well_is_steepest_at_its_inflection() -> None:
    """(w² − 1)² from −1 to 2: w = −1/√3 has 4/9 of the barrier below it."""
    found = predict_escape(at(-1.0), at(1.4), double_well, ONES, method="adam", **STEP, points=61)
    assert found.barrier == pytest.approx(1.0, abs=1e-4)
    assert found.where == pytest.approx(1 / 2.4, abs=2e-3)
    assert found.h_min == pytest.approx(8.0)
    assert found.h_saddle == pytest.approx(4.0, rel=1e-3)
    assert found.s == pytest.approx(4 / 9, rel=0.01)


def test_a_smooth_loss_is_a_doubt_where_the_integral_diverges() -> None:
    ends = at(-1.0), at(1.0)

    def doubts(method: str, **options: object) -> bool:
        found = predict_escape(*ends, double_well, ONES, method=method, **STEP, **options)
        return any("the loss is smooth" in warning for warning in found.escape.warnings)

    assert doubts("sgd")
    assert doubts("invadam")
    assert doubts("adam", regime="frozen")
    assert doubts("dualadam", alpha=0.1)
    assert not doubts("adam")
    assert not doubts("dualadam", alpha=0.0)


def test_a_start_above_the_lowest_point_is_a_doubt() -> None:
    found = predict_escape(at(-1.2), at(1.0), double_well, ONES, method="adam", **STEP)
    assert any("the model is at no minimum" in warning for warning in found.escape.warnings)


def test_measured_noise_takes_the_place_of_the_theorys() -> None:
    """Of (x²w² − 1)², gradients 4·x²·w·(x²w² − 1) vary over samples; at w = 0 they do not."""
    data = [(torch.full((1, 1), x).double(), torch.zeros(1, 1).double()) for x in (0.9, 1.0, 1.1)]
    x2 = torch.tensor([0.81, 1.0, 1.21]).double()
    ends = at(-1.0), at(1.0)
    found = predict_escape(*ends, tilted, data, method="adam", **STEP, noise="measured")
    x = x2.sqrt()
    variance = (4 * x2 * -1.0 * (x2 - 1) + 0.3 * x).var().item()
    curvature = (12 * x2**2 - 4 * x2).mean().item()
    assert found.noise[0] == pytest.approx(variance / curvature)
    w = -1.0 + 2.0 * found.where
    variance = (4 * x2 * w * (x2 * w**2 - 1) + 0.3 * x).var().item()
    curvature = (12 * x2**2 * w**2 - 4 * x2).mean().item()
    assert found.noise[1] == pytest.approx(variance / -curvature)
    plain = predict_escape(*ends, tilted, data, method="adam", **STEP, noise=found.noise)
    assert plain == found


def test_models_stay_as_they_are() -> None:
    ends = at(-1.0), at(1.0)
    ends[1].requires_grad_(False)
    before = [snapshot(model) for model in ends]
    predict_escape(*ends, tilted, DATA, method="sgd", **STEP, noise="measured")
    assert [snapshot(model) for model in ends] == before


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="no barrier lies between the models"):
        predict_escape(at(0.5), at(2.0), double_well, ONES, method="sgd", **STEP)
    with pytest.raises(ValueError, match="curvature along the path is -1 at the model"):
        predict_escape(at(-0.5), at(1.0), double_well, ONES, method="sgd", **STEP)
    same = [(torch.ones(1, 1).double(), torch.zeros(1, 1).double())] * 3
    with pytest.raises(ValueError, match="noise='measured' is 0 at the model: all batches"):
        predict_escape(at(-1.0), at(1.0), tilted, same, method="sgd", **STEP, noise="measured")


def test_a_start_far_above_the_lowest_point_is_at_no_minimum() -> None:
    with pytest.raises(ValueError, match=r"the model is at no minimum: the loss falls from 0\.92"):
        predict_escape(at(-1.4), at(1.4), double_well, ONES, method="sgd", **STEP)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"method": "sdg"}, ValueError, "did you mean sgd"),
        ({"lr": "a"}, TypeError, "lr must be a number, got 'a'"),
        ({"batch_size": 0}, ValueError, "batch_size must be a finite number > 0, got 0"),
        ({"alpha": 0.5}, ValueError, "alpha=0.5 is given for 'sgd'"),
        ({"regime": "locale"}, ValueError, "did you mean local"),
        ({"noise": "measure"}, TypeError, "noise must be one number, or two, got 'measure'"),
        ({"noise": (1.0, -1.0)}, ValueError, "noise must be a finite number > 0, got -1.0"),
        ({"points": 4}, ValueError, "points must be at least 5, got 4"),
    ],
)
def test_what_is_wrong_is_found_before_a_pass(wrong: dict, error: type, message: str) -> None:
    def never(outputs: Tensor, targets: Tensor) -> Tensor:
        raise AssertionError("a pass was made")

    with pytest.raises(error, match=message):
        predict_escape(at(-1.0), at(1.0), never, ONES, **{"method": "sgd"} | STEP | wrong)


def test_a_loss_that_reads_the_parameters_is_that_of_each_point() -> None:
    left = at(-1.0)

    def of_the_weight(outputs: Tensor, targets: Tensor) -> Tensor:
        return double_well(left.weight, targets) + 0.0 * outputs.mean()

    found = predict_escape(left, at(1.4), of_the_weight, ONES, method="adam", **STEP)
    assert found == predict_escape(at(-1.0), at(1.4), double_well, ONES, method="adam", **STEP)


@pytest.mark.parametrize("default", DEFAULTS, ids=str)
def test_torchs_defaults_change_nothing(default: Any) -> None:
    ends = at(-1.0), at(1.0)

    def predict() -> Any:
        return predict_escape(*ends, tilted, DATA, method="sgd", **STEP, noise="measured")

    usual = predict()
    with torch_default(default):
        assert predict() == usual
