"""How much curvature is measured of a run, when, and that it changes nothing of the run."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from helpers.training_runs import KillError, killed_after, numbers, train_on
from steppe.compare.data.datasets import Data
from steppe.compare.metrics.curvature import measure_quickly
from steppe.compare.records.results import Curvature, Epoch
from steppe.compare.tasks.makers import TaskMaker
from steppe.compare.training import checkpoint
from steppe.compare.training.run import Run, RunContext

pytestmark = pytest.mark.usefixtures("toy_curvature")

MakeRun = Callable[..., Run]
CPU = torch.device("cpu")


def probed(curve: tuple[Epoch, ...]) -> list[int]:
    """Give the epochs after which curvature was measured."""
    return [number for number, epoch in enumerate(curve) if not math.isnan(epoch.probe_loss)]


@pytest.mark.parametrize("extent", ["none", "quick", "full"])
def test_a_run_has_as_much_curvature_as_it_asks_for(
    make_run: MakeRun, toy_data: Data, context: RunContext, extent: str
) -> None:
    outcome = train_on(make_run(curvature=extent), toy_data, context)
    found = outcome.curvature
    measured = {
        "none": set(),
        "quick": {"sharpness", "largest"},
        "full": {"sharpness", "largest", "trace", "preconditioned", "threshold"},
    }[extent]
    numbers = {name: value for name, value in vars(found).items() if name != "density"}
    assert {name for name, value in numbers.items() if not math.isnan(value)} == measured
    assert bool(found.density) == (extent == "full")
    assert probed(outcome.curve) == ([0, 1] if extent == "full" else [])


def test_measuring_changes_nothing_of_the_run(
    make_run: MakeRun, toy_data: Data, context: RunContext
) -> None:
    """To the last bit, with random layers and running statistics."""
    outcomes = [
        train_on(
            make_run("adamcm+sam", model="noisy", epochs=3, curvature=extent), toy_data, context
        )
        for extent in ("none", "quick", "full")
    ]
    bare = []
    for outcome in outcomes:
        nan = math.nan
        curve = [replace(e, probe_loss=nan, sharpness=nan, largest=nan) for e in outcome.curve]
        bare.append(numbers(replace(outcome, curve=tuple(curve), curvature=Curvature())))
    assert bare[0] == bare[1] == bare[2]


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [
        (1, [0]),
        (8, list(range(8))),
        # Every second and every third epoch, counted from the last.
        (9, [0, 2, 4, 6, 8]),
        (20, [1, 4, 7, 10, 13, 16, 19]),
    ],
)
def test_a_dozen_epochs_at_most_are_measured_and_always_the_last(
    make_run: MakeRun, toy_data: Data, context: RunContext, epochs: int, expected: list[int]
) -> None:
    outcome = train_on(make_run("sgd", epochs=epochs), toy_data, context)
    assert probed(outcome.curve) == expected
    last = outcome.curve[-1]
    assert last.probe_loss == pytest.approx(outcome.final.train_loss, rel=1e-5)
    assert last.sharpness == outcome.curvature.sharpness
    assert last.largest == outcome.curvature.largest


@pytest.mark.parametrize("name", ["adamw", "adamw+2epochs"])
def test_what_is_measured_along_the_way_is_that_epochs_model(
    make_run: MakeRun, toy_task: TaskMaker, toy_data: Data, context: RunContext, name: str
) -> None:
    """Against the weights that each epoch has saved."""
    run = make_run(name, model="noisy", epochs=6, settings={"lr": 0.02})
    saved: list[dict[str, torch.Tensor]] = []

    def keep(number: int, epoch: Epoch) -> None:
        progress = checkpoint.read(checkpoint.progress_path(context.out, run), CPU)
        saved.append(progress["model"])

    curve = train_on(run, toy_data, context, keep).curve
    assert probed(curve) == ([1, 3, 5, 7, 9, 11] if "2epochs" in name else [0, 1, 2, 3, 4, 5])
    batches = [(toy_data.train.inputs, toy_data.train.targets)]
    for number in probed(curve):
        model = toy_task.make("noisy").eval()
        model.load_state_dict(saved[number])
        with torch.no_grad():
            loss = F.cross_entropy(model(toy_data.train.inputs), toy_data.train.targets)
        quick = measure_quickly(model, F.cross_entropy, batches)
        assert curve[number].probe_loss == pytest.approx(loss.item(), rel=1e-5)
        assert curve[number].sharpness == pytest.approx(quick.sharpness, rel=1e-3)
        assert curve[number].largest == pytest.approx(quick.largest, rel=0.02)


def test_a_resumed_run_keeps_what_was_measured_before(
    make_run: MakeRun, toy_data: Data, context: RunContext
) -> None:
    run = make_run("adamw", model="noisy", epochs=5)
    whole = train_on(run, toy_data, replace(context, out=context.out / "whole"))
    for epoch in (1, 3):
        with pytest.raises(KillError):
            train_on(run, toy_data, context, killed_after(epoch, []))
    resumed = train_on(run, toy_data, context)
    assert probed(resumed.curve) == list(range(5))
    assert numbers(resumed) == numbers(whole)


def test_under_autocast_only_the_end_is_measured(
    make_run: MakeRun, toy_data: Data, context: RunContext
) -> None:
    outcome = train_on(make_run(precision="bf16"), toy_data, context)
    assert probed(outcome.curve) == []
    assert outcome.curvature.trace > 0
