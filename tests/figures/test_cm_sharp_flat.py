"""Who leaves a sharp minimum: against what is known of gradient descent, and the figure's claim."""

import json

import pytest
import torch

import steppe
from figures.cm_sharp_flat import draw, escape_ratios, measure
from steppe.functions import find_function
from steppe.theory import rate

pytestmark = pytest.mark.thorough


def measured(**sizes: object) -> dict:
    return json.loads(json.dumps(measure(**sizes), allow_nan=False))


@pytest.fixture(scope="module")
def data() -> dict:
    optimizers = ("adam", "adam+2lr", "adamcm")
    return measured(
        optimizers=optimizers, lrs=(0.1, 0.2), sharpnesses=(10, 300), starts=4, steps=400
    )


def test_gradient_descent_rests_in_wells_less_sharp_than_two_over_its_lr() -> None:
    """It is stable on a quadratic for lr·h < 2 and nowhere else, and the flat well's h is 1."""
    data = measured(
        optimizers=("sgd", "sgd+2lr"), lrs=(0.1, 0.5), sharpnesses=(3, 15, 30), starts=5, steps=300
    )
    for run in data["runs"]:
        lr = run["lr"] * (2 if run["optimizer"] == "sgd+2lr" else 1)
        rests = [
            end == "stayed" and settled
            for end, settled in zip(run["ends"], run["settled"], strict=True)
        ]
        if lr < 1:  # a longer step may happen to land in the sharp minimum itself
            assert rests == [lr * run["sharpness"] < 2] * 5, run
    # Its steps are long enough to reach the flat well, and there it rests.
    assert escape_ratios(data, "sgd", 0.5) == [0, 1, 1]
    assert [all(run["settled"]) for run in data["runs"][:6]] == [
        True,
        True,
        False,
        True,
        True,
        True,
    ]


@pytest.mark.parametrize(("optimizer", "lr"), [("sgd", 3.0), ("adamcm", 0.4)])
def test_ends_that_are_no_end(optimizer: str, lr: float) -> None:
    """Gradient descent with lr·h > 2 in both wells diverges; AdamCM goes to and fro here."""
    sizes = {"lrs": (lr,), "sharpnesses": (3,), "starts": 3, "steps": 500}
    (run,) = measured(optimizers=(optimizer,), **sizes)["runs"]
    assert run["ends"] == ["neither"] * 3
    assert run["settled"] == [False] * 3


def test_critical_momenta_leave_where_adam_at_twice_the_lr_stays(data: dict) -> None:
    assert escape_ratios(data, "adam", 0.1) == [0, 0]
    assert escape_ratios(data, "adam+2lr", 0.1) == [0, 0]
    assert escape_ratios(data, "adamcm", 0.1) == [0, 1]


def test_what_swings_is_past_the_bound_of_its_iteration() -> None:
    """Adam's steps are heavy ball's of curvature h/√v̂, AdamCM's nearly those of a fifo buffer."""
    function = find_function("sharp-flat", sharpness=10.0)
    curvature, distance = {}, {}
    for cls in (torch.optim.Adam, steppe.AdamCM):
        p = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
        optimizer = cls([p], lr=0.05)
        for _ in range(600):
            p.grad = function.gradient(p.detach())
            optimizer.step()
        v = optimizer.state[p]["exp_avg_sq"].item() / (1 - 0.999**600)
        curvature[cls] = 10.0 / v**0.5
        distance[cls] = abs(p.item() - function.sharp.point[0])
    heavy_ball = rate("heavy-ball", curvature[torch.optim.Adam], lr=0.05, momentum=0.9)
    critical = rate("critical-momenta", curvature[steppe.AdamCM], lr=0.05, momentum=0.9)
    assert heavy_ball < 1 < critical
    assert distance[torch.optim.Adam] < 1e-6 < distance[steppe.AdamCM]


@pytest.mark.parametrize("lr", [0.05, 0.1, 0.2])
def test_critical_momenta_come_to_rest_when_the_lr_does(lr: float) -> None:
    function = find_function("sharp-flat", sharpness=10.0)
    losses = {}
    for last in (1.0, 0.0):
        p = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
        optimizer = steppe.AdamCM([p], lr=lr)
        for left in torch.linspace(1.0, last, 600).tolist():
            optimizer.param_groups[0]["lr"] = lr * left
            p.grad = function.gradient(p.detach())
            optimizer.step()
            losses.setdefault(last, []).append(function(p.detach()).item())
    assert losses[0.0][-1] < 0.01 < max(losses[1.0][-60:])


def test_the_control_is_adam_at_the_next_lr(data: dict) -> None:
    ends = {(run["optimizer"], run["lr"], run["sharpness"]): run["ends"] for run in data["runs"]}
    for sharpness in (10.0, 300.0):
        assert ends["adam+2lr", 0.1, sharpness] == ends["adam", 0.2, sharpness]


def test_it_is_drawn(data: dict) -> None:
    figure = draw(data)
    maps, ratios = figure.axes[:3], figure.axes[3:]
    assert [axes.get_title(loc="left") for axes in maps] == [
        "adam, lr 0.1",
        "adam+2lr, lr 0.1 × 2",
        "adamcm, lr 0.1",
    ]
    assert maps[2].collections[0].get_array().tolist() == [[0, 1]] * 4
    assert ratios[0].lines[2].get_ydata().tolist() == [0, 1]
    assert [axes.axison for axes in ratios] == [True, True, False]
