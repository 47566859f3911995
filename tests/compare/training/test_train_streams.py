"""Training on a stream of tasks, one after the other, against a loop by hand."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from helpers.training_runs import KillError, batches_of, killed_after, numbers, seeds, train_on
from steppe.compare.data.datasets import Data, Stream, TensorSamples
from steppe.compare.planning.presets import USUAL
from steppe.compare.planning.study import PlannedStudy, StudyOptions, plan_study
from steppe.compare.records.json_format import from_json
from steppe.compare.records.packed_numbers import unpack
from steppe.compare.records.summary import forgetting
from steppe.compare.tasks.makers import TaskMaker
from steppe.compare.training import checkpoint
from steppe.compare.training.run import Run, RunContext

pytestmark = pytest.mark.thorough

CPU = torch.device("cpu")
# Two passes over each of three tasks of 11, 5 and 8 samples, four a batch.
EPOCHS, STREAM = 6, (3, 2, 2)
TASK = [0, 0, 1, 1, 2, 2]


@pytest.fixture
def data(toy_stream: TaskMaker) -> Data:
    return toy_stream().load().data


@pytest.fixture
def run(make_run: Callable[..., Run], toy_stream: TaskMaker) -> Callable[..., Run]:
    """Make a run of the toy stream."""

    def make(name: str = "adamw", **changes: object) -> Run:
        size = {"epochs": EPOCHS, "steps_per_epoch": max(STREAM), "batch_size": 4}
        own = {"task": "toy-stream", "model": "net", "stream": STREAM, **size}
        found: Run = make_run(name, **{**own, **changes})
        return found

    return make


def one_by_one(samples: Stream) -> TensorSamples:
    pairs = [samples[row] for row in range(len(samples))]
    return TensorSamples(*map(torch.stack, zip(*pairs, strict=True)))


def of_task(samples: Stream, task: int) -> TensorSamples:
    whole = one_by_one(samples)
    return whole.take((whole.targets // 2 == task).nonzero().flatten())


def own_outputs(outputs: Tensor, targets: Tensor) -> Tensor:
    """Keep the two places of each sample's own task."""
    return torch.stack(
        [
            row[2 * (t // 2) : 2 * (t // 2) + 2]
            for row, t in zip(outputs, targets.tolist(), strict=True)
        ]
    )


def surprise(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(own_outputs(outputs, targets), targets % 2)


def accuracy(model: nn.Module, samples: Stream, task: int) -> float:
    part = of_task(samples, task)
    with torch.no_grad():
        guesses = own_outputs(model.eval()(part.inputs), part.targets).argmax(1)
    return float((guesses == part.targets % 2).double().mean())


def loss_on(model: nn.Module, samples: Stream, tasks: range) -> float:
    parts = [of_task(samples, task) for task in tasks]
    inputs = torch.cat([part.inputs for part in parts])
    targets = torch.cat([part.targets for part in parts])
    with torch.no_grad():
        return surprise(model.eval()(inputs), targets).item()


def ends(run: Run, *outs: RunContext) -> list[dict]:
    return [checkpoint.load(checkpoint.checkpoint_path(each.out, run), CPU) for each in outs]


@pytest.mark.parametrize("schedule", ["constant", "cosine-epochs"])
def test_tasks_are_trained_one_after_the_other(
    run: Callable[..., Run], toy_stream: TaskMaker, data: Data, context: RunContext, schedule: str
) -> None:
    settings = {"lr": 0.05, "weight_decay": 0.1}
    own = run(settings=settings, schedule=schedule)
    outcome = train_on(own, data, context)
    torch.manual_seed(seeds(own, -1))
    model = toy_stream.make("net")
    optimizer = torch.optim.AdamW(model.parameters(), **settings)
    assert len(outcome.curve) == EPOCHS
    for epoch, (task, found) in enumerate(zip(TASK, outcome.curve, strict=True)):
        samples = of_task(data.train, task)
        rate = 0.05
        if schedule == "cosine-epochs":
            rate *= 1e-3 + 0.999 * (1 + np.cos(np.pi * epoch / EPOCHS)) / 2
        optimizer.param_groups[0]["lr"] = rate
        total = 0.0
        model.train()
        for inputs, targets in batches_of(own, epoch, samples):
            optimizer.zero_grad()
            loss = surprise(model(inputs), targets)
            loss.backward()
            optimizer.step()
            total += loss.item() * len(targets)
        assert found.train_loss == pytest.approx(total / len(samples), rel=1e-5)
        assert found.lr == pytest.approx(rate)
        # Validated on the tasks so far, and on none that is still to come.
        shares = [accuracy(model, data.validation, each) for each in range(task + 1)]
        assert found.tasks == pytest.approx(shares)
        assert found.validation_score == pytest.approx(np.mean(shares))
        expected = loss_on(model, data.validation, range(task + 1))
        assert found.validation_loss == pytest.approx(expected, rel=1e-5)
    (end,) = ends(own, context)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(end["model"][name], value)
    final = outcome.final
    for loss, score, samples in (
        (final.train_loss, final.train_score, data.train),
        (final.validation_loss, final.validation_score, data.validation),
        (final.test_loss, final.test_score, data.test),
    ):
        shares = [accuracy(model, samples, task) for task in range(3)]
        assert score == pytest.approx(np.mean(shares))
        assert loss == pytest.approx(loss_on(model, samples, range(3)), rel=1e-5)
    # Of uneven tasks, the mean of their accuracies is not that over all samples.
    counts = np.bincount(one_by_one(data.test).targets // 2)
    test = [accuracy(model, data.test, task) for task in range(3)]
    assert final.test_score != pytest.approx(np.average(test, weights=counts))


def test_results_of_samples_are_by_the_places_of_their_own_tasks(
    run: Callable[..., Run], toy_stream: TaskMaker, data: Data, context: RunContext
) -> None:
    own = run(settings={"lr": 0.1})
    found = train_on(own, data, context).samples
    model = toy_stream.make("net").eval()
    model.load_state_dict(ends(own, context)[0]["model"])
    for hits, losses, samples in (
        (found.validation_scores, found.validation_losses, data.validation),
        (found.test_scores, found.test_losses, data.test),
    ):
        whole = one_by_one(samples)
        inputs, targets = whole.inputs, whole.targets
        with torch.no_grad():
            outputs = own_outputs(model(inputs), targets)
        right = (outputs.argmax(1) == targets % 2).tolist()
        expected = nn.functional.cross_entropy(outputs, targets % 2, reduction="none")
        assert unpack(hits).tolist() == right
        assert 0 < sum(right) < len(right)
        assert unpack(losses) == pytest.approx(expected.tolist(), rel=1e-3, abs=1e-4)


def test_the_accuracies_of_all_tasks_say_what_is_forgotten(
    run: Callable[..., Run], data: Data, context: RunContext
) -> None:
    curve = train_on(run(settings={"lr": 0.1}), data, context).curve
    assert [len(epoch.tasks) for epoch in curve] == [1, 1, 2, 2, 3, 3]
    first, second, last = (curve[epoch].tasks for epoch in (1, 3, 5))
    expected = ((max(first[0], second[0]) - last[0]) + (second[1] - last[1])) / 2
    assert forgetting([first, second, last]) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["adamcm", "dualadam+sam"])
@pytest.mark.parametrize("last", [1, 2])
def test_a_killed_run_goes_on_to_the_same_numbers(
    run: Callable[..., Run], data: Data, context: RunContext, name: str, last: int
) -> None:
    """Ended between two tasks, or in the middle of one."""
    own = run(name, schedule="cosine")
    elsewhere = replace(context, out=context.out / "whole")
    whole = train_on(own, data, elsewhere)
    seen: list[int] = []
    with pytest.raises(KillError):
        train_on(own, data, context, killed_after(last, seen))
    torch.rand(7)
    outcome = train_on(own, data, context, killed_after(-1, seen))
    assert seen == list(range(EPOCHS))
    assert numbers(outcome) == numbers(whole)
    for one, other in zip(*map(tree_leaves, ends(own, context, elsewhere)), strict=True):
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other


def test_the_median_step_is_that_of_tasks_of_any_length(
    run: Callable[..., Run], data: Data, context: RunContext
) -> None:
    outcome = train_on(run(), data, context)
    until = [0.0, *(epoch.seconds for epoch in outcome.curve)]
    steps = [STREAM[task] for task in TASK]
    each = [1e3 * seconds / count for seconds, count in zip(np.diff(until), steps, strict=True)]
    assert outcome.costs.step_ms == pytest.approx(np.median(each))


def test_trackers_get_each_task_as_a_number(
    run: Callable[..., Run], data: Data, context: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[dict[str, float]] = []
    monkeypatch.setattr(
        "accelerate.Accelerator.log", lambda self, values, step=None: logged.append(values)
    )
    curve = train_on(run(), data, context).curve
    for values, epoch in zip(logged, curve, strict=True):
        names = [f"validation_score_of_task_{number + 1}" for number in range(len(epoch.tasks))]
        assert tuple(values[name] for name in names) == epoch.tasks
        assert all(isinstance(value, float) for value in values.values())


def test_a_study_knows_the_steps_of_each_task(toy_stream: TaskMaker, context: RunContext) -> None:
    study = plan_study("toy-stream", StudyOptions(["adamw"]), USUAL, context)
    setup = study.setup
    assert (setup.stream, setup.steps_per_epoch) == (STREAM, max(STREAM))
    assert setup.steps == 2 * sum(STREAM)
    assert [setup.task_index(epoch) for epoch in range(EPOCHS)] == TASK
    assert study.metric.name == "average accuracy"
    assert from_json(PlannedStudy, study.to_dict()).setup == setup
    # So many of each task, all of the one that has fewer.
    few = plan_study("toy-stream", StudyOptions(["adamw"], samples=8), USUAL, context)
    assert few.setup.stream == (2, 2, 2)
    assert few.facts["train_samples"] == 8 + 5 + 8


@pytest.mark.parametrize("epochs", [1, 4, 7])
def test_every_task_gets_as_many_epochs(
    toy_stream: TaskMaker, context: RunContext, epochs: int
) -> None:
    message = f"epochs must be a multiple of the 3 tasks of toy-stream, got {epochs}"
    with pytest.raises(ValueError, match=message):
        plan_study("toy-stream", StudyOptions(["adamw"], epochs=epochs), USUAL, context)
    assert not context.out.exists()
