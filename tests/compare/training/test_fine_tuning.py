"""Fine-tuning on a second task: against plain loops, and without a trace in what is trained."""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from helpers.training_runs import KillError, killed_after, numbers, seeds, task_of
from steppe.compare.data.datasets import Data, TensorSamples
from steppe.compare.models.language_models import carried_state
from steppe.compare.records.json_format import from_json, to_json
from steppe.compare.records.results import FineTuningCurve, Outcome
from steppe.compare.records.second_task import SecondTask
from steppe.compare.tasks.makers import TaskMaker
from steppe.compare.tasks.task import LoadedTask
from steppe.compare.training import checkpoint, fine_tuning
from steppe.compare.training.accelerator import make_accelerator
from steppe.compare.training.run import Run, RunContext
from steppe.compare.training.train import train

MakeRun = Callable[..., Run]

SECOND = SecondTask("other", "other", batch_size=4, steps=12, lrs=(0.01, 0.3))
STEPS = (0, 1, 2, 3, 5, 6, 9, 12)


@pytest.fixture
def other(toy_task: TaskMaker) -> LoadedTask:
    """Give a second task of the toy's shape, with a rule of its own."""
    generator = torch.Generator().manual_seed(11)
    inputs = torch.randn(34, 1, 2, 2, generator=generator)
    targets = (inputs[:, 0, 0, 0] > inputs[:, 0, 1, 1]).long()
    parts = [TensorSamples(inputs[some], targets[some]) for some in slices(10, 22, 34)]
    return LoadedTask(toy_task(), Data(*parts, fingerprint="other"))


def slices(*ends: int) -> list[slice]:
    return [slice(begin, end) for begin, end in zip((0, *ends), ends, strict=False)]


def tuned(run: Run, data: Data, then: LoadedTask, context: RunContext, *rest: Any) -> Outcome:
    return train(run, task_of(run, data), context, *rest, then=then)


def measured(model: nn.Module, datas: tuple[Data, Data]) -> list[float]:
    found = []
    with torch.no_grad():
        for samples in (part for data in datas for part in (data.validation, data.test)):
            outputs = model.eval()(samples.inputs)
            found += [
                F.cross_entropy(outputs, samples.targets).item(),
                (outputs.argmax(1) == samples.targets).double().mean().item(),
            ]
    model.train()
    return found


@pytest.mark.parametrize("network", ["linear", "noisy"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw+ema"])
def test_a_curve_is_a_plain_loop_of_torch(
    make_run: MakeRun, toy_task: TaskMaker, toy_data: Data, other: LoadedTask, context: RunContext,
    network: str, optimizer: str,
) -> None:  # fmt: skip
    run = make_run(optimizer, 3, model=network, settings={"lr": 0.05}, then=SECOND)
    outcome = tuned(run, toy_data, other, context)
    trained = checkpoint.load(checkpoint.checkpoint_path(context.out, run), torch.device("cpu"))
    seed = seeds(run, 1_000_000)
    assert [curve.lr for curve in outcome.fine_tuning] == [0.01, 0.3]
    for curve in outcome.fine_tuning:
        model = toy_task.make(network)
        model.load_state_dict(trained["model"])
        torch_optimizer = torch.optim.AdamW(model.parameters(), lr=curve.lr)
        order = torch.Generator().manual_seed(seed)
        samples = TensorDataset(other.data.train.inputs, other.data.train.targets)
        loader = DataLoader(samples, 4, True, generator=order)
        rows = [measured(model, (toy_data, other.data))]
        torch.manual_seed(seed)
        batches: list[list[Tensor]] = []
        for step in range(1, 13):
            # An order is drawn when the one before is through: three batches of ten samples.
            batches = batches or list(loader)
            inputs, targets = batches.pop(0)
            torch_optimizer.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            torch_optimizer.step()
            if step in STEPS:
                rows.append(measured(model, (toy_data, other.data)))
        assert curve.steps == STEPS
        found = list(vars(curve).values())[2:]
        for column, wanted in zip(found, zip(*rows, strict=True), strict=True):
            assert column == pytest.approx(wanted, rel=2e-5)


@pytest.mark.parametrize("optimizer", ["adamw", "adamw+ema", "dualadam+sam"])
def test_everything_else_is_the_same_without_it(
    make_run: MakeRun, toy_data: Data, other: LoadedTask, context: RunContext, optimizer: str
) -> None:
    run = make_run(optimizer, model="noisy", epochs=3, robustness=True)
    second = replace(run, run_settings=replace(run.run_settings, then=SECOND))
    outcomes = []
    for each in (run, second):
        torch.manual_seed(5)
        outcomes.append(tuned(each, toy_data, other, context))
        assert torch.initial_seed() == 5
        outcomes[-1] = replace(outcomes[-1], costs=outcomes[0].costs)
    without, with_second = outcomes
    assert without.fine_tuning == ()
    assert len(with_second.fine_tuning) == 2
    assert numbers(with_second) == numbers(without)
    assert repr(with_second.robustness) == repr(without.robustness)
    paths = [checkpoint.checkpoint_path(context.out, each) for each in (run, second)]
    ours, theirs = (checkpoint.load(path, torch.device("cpu")) for path in paths)
    assert repr(ours["model"]) == repr(theirs["model"])
    assert repr(ours["optimizer_state"]) == repr(theirs["optimizer_state"])


def test_neither_the_model_nor_any_random_state_changes(
    make_run: MakeRun, toy_task: TaskMaker, toy_data: Data, other: LoadedTask, context: RunContext
) -> None:
    run = make_run(model="noisy", then=SECOND)
    model = toy_task.make("noisy").eval()

    def state() -> tuple[object, ...]:
        tensors = [*model.state_dict().values(), torch.get_rng_state()]
        drawn = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
        return [each.tolist() for each in tensors], drawn, model.training

    before = state()
    accelerator = make_accelerator(run, context)
    loaded = task_of(run, toy_data)
    fine_tuning.fine_tuning_of(run, loaded, other, context, model, accelerator)
    assert state() == before
    assert all(param.grad is None for param in model.parameters())


def test_fine_tuning_starts_from_what_was_evaluated(
    make_run: MakeRun, toy_data: Data, other: LoadedTask, context: RunContext
) -> None:
    run = make_run("adamw+ema", settings={"lr": 0.1}, epochs=4, then=SECOND)
    outcome = tuned(run, toy_data, other, context)
    for curve in outcome.fine_tuning:
        assert curve.test_loss[0] == pytest.approx(outcome.final.test_loss, rel=1e-5)
        assert curve.validation_score[0] == pytest.approx(outcome.final.validation_score, rel=1e-5)


def test_order_depends_on_the_seed_alone(
    make_run: MakeRun, toy_data: Data, other: LoadedTask, context: RunContext, monkeypatch
) -> None:
    seen: list[list[int]] = []

    class Spied(TensorSamples):
        def __getitems__(self, rows):
            if len(rows) <= 4:
                seen.append(list(rows))
            return super().__getitems__(rows)

    spied = Spied(other.data.train.inputs, other.data.train.targets)
    then = other._replace(data=replace(other.data, train=spied))
    orders = []
    for name, seed in (("adamw", 0), ("sgd", 0), ("sgd", 1)):
        seen.clear()
        tuned(make_run(name, seed, then=SECOND), toy_data, then, context)
        assert seen[:12] == seen[12:]
        orders.append(seen[:12])
    assert orders[0] == orders[1] != orders[2]


def test_a_run_that_is_killed_amid_fine_tuning_goes_on_with_the_same_numbers(
    make_run: MakeRun, toy_data: Data, other: LoadedTask, context: RunContext, monkeypatch
) -> None:
    run = make_run("adamw", model="noisy", epochs=3, then=SECOND)
    whole = tuned(run, toy_data, other, replace(context, out=context.out / "whole"))
    evaluate, calls = fine_tuning.evaluate, [0]

    def killing(*rest: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == 40:
            raise KillError
        return evaluate(*rest, **options)

    monkeypatch.setattr(fine_tuning, "evaluate", killing)
    with pytest.raises(KillError):
        tuned(run, toy_data, other, context)
    assert checkpoint.progress_path(context.out, run).exists()
    seen: list[int] = []
    resumed = tuned(run, toy_data, other, context, killed_after(-1, seen))
    # No epoch is trained again.
    assert seen == []
    assert numbers(resumed) == numbers(whole)
    assert resumed.fine_tuning == whole.fine_tuning
    assert not checkpoint.progress_path(context.out, run).exists()


def test_a_loss_that_is_not_finite_ends_a_curve_with_nan(
    make_run: MakeRun, toy_data: Data, other: LoadedTask, context: RunContext
) -> None:
    run = make_run(then=replace(SECOND, lrs=(1e30, 0.01)))
    broken, fine = tuned(run, toy_data, other, context).fine_tuning
    assert broken.steps == fine.steps == STEPS
    assert broken.test_loss[0] == fine.test_loss[0]
    assert all(x != x for x in broken.second_test_loss[-3:])
    assert all(x == x for x in fine.second_test_loss)


def test_curves_survive_json(
    make_run: MakeRun, toy_data: Data, other: LoadedTask, context: RunContext
) -> None:
    run = make_run(then=replace(SECOND, lrs=(1e30, 0.01)))
    curves = tuned(run, toy_data, other, context).fine_tuning
    content = to_json(list(curves))
    assert content[0]["second_test_loss"][-1] is None
    again = from_json(list[FineTuningCurve], content)
    assert repr(again) == repr(list(curves))


def test_a_run_without_the_second_tasks_data_is_refused(
    make_run: MakeRun, toy_data: Data, context: RunContext
) -> None:
    run = make_run(then=SECOND)
    with pytest.raises(ValueError, match="then must be the second task other with its data, got N"):
        train(run, task_of(run, toy_data), context)


def test_a_recurrent_model_reads_on_across_evaluations(
    toy_text: TaskMaker, make_run: MakeRun, context: RunContext
) -> None:
    """A curve of an LSTM against a loop by hand: the state goes from batch to batch."""
    loaded = toy_text().load()
    flipped = [
        TensorSamples(10 - part.inputs, 10 - part.targets)
        for part in (loaded.data.train, loaded.data.validation, loaded.data.test)
    ]
    then = loaded._replace(data=Data(*flipped, fingerprint="flipped"))
    second = SecondTask("flipped", "flipped", batch_size=4, steps=9, lrs=(0.05,))
    size = {"epochs": 1, "steps_per_epoch": 6, "batch_size": 4, "length": 50}
    run = make_run("adamw", task="toy-text", model="lstm", **size, then=second)
    (curve,) = tuned(run, loaded.data, then, context).fine_tuning
    trained = checkpoint.load(checkpoint.checkpoint_path(context.out, run), torch.device("cpu"))
    model = toy_text.make("lstm")
    model.load_state_dict(trained["model"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    torch.manual_seed(seeds(run, 1_000_000))
    rows = [[column * 6 + row for column in range(4) if column * 6 + row < 22] for row in range(6)]
    state = None
    for step in range(9):
        chosen = rows[step % 6]
        if step % 6 == 0:
            state = None
        if state is not None:
            state = tuple(each[:, : len(chosen)].contiguous() for each in state)
        scores, end = model.read(flipped[0].inputs[chosen], state)
        optimizer.zero_grad()
        loss = F.cross_entropy(scores.flatten(0, 1), flipped[0].targets[chosen].flatten())
        loss.backward()
        optimizer.step()
        state = tuple(each.detach() for each in end)
    # The test's seven blocks are a batch of as many columns.
    with torch.no_grad():
        scores, _ = model.eval().read(flipped[2].inputs, None)
    wanted = F.cross_entropy(scores.flatten(0, 1), flipped[2].targets.flatten()).item()
    assert curve.second_test_loss[-1] == pytest.approx(wanted, rel=2e-5)


def test_a_block_inside_another_leaves_the_outer_place(toy_text: TaskMaker) -> None:
    model = toy_text.make("lstm").eval()
    tokens = toy_text().load().data.train.inputs[:4]
    with torch.no_grad():
        with carried_state(model) as advance:
            model(tokens[:2])
            advance()
            wanted = model(tokens[2:])
        with carried_state(model) as advance:
            model(tokens[:2])
            with carried_state(model) as inner:
                model(tokens[:1])
                inner()
            advance()
            assert torch.equal(model(tokens[2:]), wanted)
        assert not torch.equal(model(tokens[2:]), wanted)


def test_up_to_ten_steps_are_measured() -> None:
    assert SECOND.measured_steps() == STEPS
    for steps in (1, 2, 7, 200, 10_000):
        found = replace(SECOND, steps=steps).measured_steps()
        assert found[0] == 0
        assert found[-1] == steps
        assert list(found) == sorted({*found})
        assert len(found) <= 10
