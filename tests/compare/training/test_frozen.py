"""Models of which only a part is trained."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.training_runs import by_hand, seeds, train_on
from steppe._shared.recipes import Recipe
from steppe.compare.data.datasets import Data
from steppe.compare.planning.presets import USUAL
from steppe.compare.planning.study import StudyOptions, plan_study
from steppe.compare.tasks import makers
from steppe.compare.tasks.makers import TaskMaker
from steppe.compare.training import checkpoint
from steppe.compare.training.run import Run, RunContext

MakeRun = Callable[..., Run]
# Of the last layer: 3·2 weights and 2 biases.
TRAINED, ALL = 8, 4 * 3 + 3 + 8


def half_frozen(name: str) -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    model[1].requires_grad_(False)
    return model


@pytest.fixture(autouse=True)
def _frozen_task(toy_task: TaskMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(makers.TASKS, "toy", replace(toy_task, make=half_frozen))


def start(run: Run) -> nn.Module:
    torch.manual_seed(seeds(run, -1))
    return half_frozen("")


def weights_after(run: Run, data: Data, context: RunContext) -> dict[str, Tensor]:
    train_on(run, data, context)
    path = checkpoint.checkpoint_path(context.out, run)
    found: dict[str, Tensor] = checkpoint.load(path, torch.device("cpu"))["model"]
    return found


class Noted(torch.optim.AdamW):
    """Keeps the sizes of what it is given."""

    sizes: list[list[int]]

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        params = list(params)
        Noted.sizes.append([p.numel() for p in params])
        super().__init__(params, lr=lr)


def test_an_optimizer_gets_the_trained_parameters_alone(
    make_run: MakeRun, toy_data: Data, context: RunContext
) -> None:
    Noted.sizes = []
    train_on(replace(make_run(), recipe=Recipe("noted", Noted)), toy_data, context)
    assert Noted.sizes == [[6, 2]]


@pytest.mark.parametrize(
    "name", ["adamw", "sgd+sam", "adamcm", "dualadam", "dualadamcm+sam", "dualadam-bf16", "lbfgs"]
)
def test_what_is_frozen_stays_to_the_last_bit(
    make_run: MakeRun, toy_data: Data, context: RunContext, name: str
) -> None:
    settings = {} if name == "lbfgs" else {"lr": 0.1, "weight_decay": 0.1}
    run = make_run(name, settings=settings, clip=0.5)
    before, after = start(run).state_dict(), weights_after(run, toy_data, context)
    for key in ("1.weight", "1.bias"):
        assert torch.equal(after[key], before[key])
    for key in ("3.weight", "3.bias"):
        assert (after[key] != before[key]).all()


def test_the_rest_is_trained_as_ever(
    make_run: MakeRun, toy_data: Data, context: RunContext
) -> None:
    settings = {"lr": 0.1, "weight_decay": 0.1}
    run = make_run("adamw", settings=settings)
    found = weights_after(run, toy_data, context)
    model = start(run)
    optimizer = torch.optim.AdamW(model[3].parameters(), **settings)

    def step(number: int, inputs: Tensor, targets: Tensor) -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        return loss.item()

    assert len(list(by_hand(run, model, toy_data.train, step))) == 2
    for key, value in model.state_dict().items():
        torch.testing.assert_close(found[key], value)


def test_memory_is_counted_by_trained_parameter(
    make_run: MakeRun, toy_data: Data, context: RunContext
) -> None:
    """Two moments in fp32, and a 4-byte step for each of the two tensors."""
    costs = train_on(make_run("adamw"), toy_data, context).costs
    assert costs.state_bytes == pytest.approx(8.0 + 2 * 4 / TRAINED)


@pytest.mark.usefixtures("toy_curvature")
def test_curvature_is_that_of_what_is_trained(
    make_run: MakeRun, toy_data: Data, context: RunContext
) -> None:
    run = make_run("sgd", settings={"lr": 0.3})
    curvature = train_on(run, toy_data, context).curvature
    model = half_frozen("")
    path = checkpoint.checkpoint_path(context.out, run)
    model.load_state_dict(checkpoint.load(path, torch.device("cpu"))["model"])
    with torch.no_grad():
        features = model[:3](toy_data.train.inputs).double()

    def loss(vector: Tensor) -> Tensor:
        outputs = features @ vector[:6].view(2, 3).T + vector[6:]
        return F.cross_entropy(outputs, toy_data.train.targets)

    end = torch.cat([p.detach().flatten() for p in model[3].parameters()]).double()
    H = torch.autograd.functional.hessian(loss, end).numpy()
    assert H.shape == (TRAINED, TRAINED)
    assert curvature.largest == pytest.approx(np.linalg.eigvalsh(H).max(), rel=0.01)
    assert curvature.trace == pytest.approx(np.trace(H), rel=1e-4)


def test_a_study_tells_how_many_are_trained(context: RunContext) -> None:
    facts = plan_study("toy", StudyOptions(["adamw"]), USUAL, context).facts
    assert (facts["parameters"], facts["trained_parameters"]) == (ALL, TRAINED)
