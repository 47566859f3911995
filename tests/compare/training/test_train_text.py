"""Training on text: what recurrent models carry from batch to batch, against loops by hand."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from helpers.training_runs import KillError, by_hand, killed_after, numbers, seeds, train_on
from steppe.compare.data.datasets import Data, TensorSamples
from steppe.compare.data.loading import head
from steppe.compare.planning.presets import USUAL
from steppe.compare.planning.study import StudyOptions, plan_study
from steppe.compare.records.packed_numbers import unpack
from steppe.compare.tasks.makers import TaskMaker
from steppe.compare.training import checkpoint
from steppe.compare.training.run import Run, RunContext
from steppe.landscape import sharpness

pytestmark = pytest.mark.thorough

CPU = torch.device("cpu")
COLUMNS, LENGTH = 4, 50
# Evaluation takes 500 words at a time.
TOGETHER = 10

State = tuple[Tensor, Tensor]


@pytest.fixture
def text(toy_text: TaskMaker) -> Data:
    return toy_text().load().data


@pytest.fixture
def run(make_run: Callable[..., Run], toy_text: TaskMaker) -> Callable[..., Run]:
    """Make a run of the toy text."""

    def make(name: str = "adamw", model: str = "lstm", **changes: object) -> Run:
        size = {"epochs": 3, "steps_per_epoch": 6, "batch_size": COLUMNS, "length": LENGTH}
        found: Run = make_run(name, task="toy-text", model=model, **{**size, **changes})
        return found

    return make


def cut(count: int, size: int) -> Iterator[list[int]]:
    """Lay a text out in columns side by side, and go down them a block at a time."""
    high = math.ceil(count / size)
    for row in range(high):
        yield [column * high + row for column in range(size) if column * high + row < count]


def surprise(scores: Tensor, targets: Tensor) -> Tensor:
    chances = scores.log_softmax(-1).gather(-1, targets[..., None])
    return -chances.mean()


def first(state: State | None, count: int) -> State | None:
    return state and (state[0][:, :count].contiguous(), state[1][:, :count].contiguous())


def evaluated(model: nn.Module, samples: TensorSamples) -> float:
    """Read a text in columns, each from where it was; return the mean surprise of a word."""
    model.eval()
    state, total = None, 0.0
    for rows in cut(len(samples), TOGETHER):
        with torch.no_grad():
            scores, state = model.read(samples.inputs[rows], first(state, len(rows)))
        total += surprise(scores, samples.targets[rows]).item() * len(rows)
    model.train()
    return total / len(samples)


def trained(run: Run, model: nn.Module, data: Data, rho: float) -> Iterator[tuple[float, float]]:
    """Train by hand, by SGD; yield the mean train loss and the validation loss of each epoch."""
    params = list(model.parameters())
    lr = run.settings["lr"]
    for epoch in range(run.run_settings.epochs):
        torch.manual_seed(seeds(run, epoch))
        state, total = None, 0.0
        for rows in cut(len(data.train), run.run_settings.batch_size):
            inputs, targets = data.train.inputs[rows], data.train.targets[rows]
            start = first(state, len(rows))
            scores, state = model.read(inputs, start)
            loss = surprise(scores, targets)
            total += loss.item() * len(rows)
            gradient = torch.autograd.grad(loss, params)
            if rho:
                length = torch.cat([g.flatten() for g in gradient]).norm()
                moves = [rho * g / length for g in gradient]
                with torch.no_grad():
                    for p, move in zip(params, moves, strict=True):
                        p += move
                # From where the first pass started; the text goes on from where that one ended.
                scores, _ = model.read(inputs, start)
                gradient = torch.autograd.grad(surprise(scores, targets), params)
                with torch.no_grad():
                    for p, move in zip(params, moves, strict=True):
                        p -= move
            with torch.no_grad():
                for p, g in zip(params, gradient, strict=True):
                    p -= lr * g
            state = state[0].detach(), state[1].detach()
        yield total / len(data.train), evaluated(model, data.validation)


def kept(run: Run, context: RunContext, model: nn.Module) -> nn.Module:
    model.load_state_dict(
        checkpoint.load(checkpoint.checkpoint_path(context.out, run), CPU)["model"]
    )
    return model


@pytest.mark.parametrize(("name", "rho"), [("sgd", 0.0), ("sgd+sam", 0.3)])
def test_a_text_is_read_on_from_batch_to_batch(
    run: Callable[..., Run],
    toy_text: TaskMaker,
    text: Data,
    context: RunContext,
    name: str,
    rho: float,
) -> None:
    """The state goes over the whole text, in training and in evaluation; SAM reads twice."""
    own = run(name, settings={"lr": 2.0, "weight_decay": 0.0, **({"rho": rho} if rho else {})})
    outcome = train_on(own, text, context)
    torch.manual_seed(seeds(own, -1))
    model = toy_text.make("lstm")
    for epoch, (train_loss, loss) in enumerate(trained(own, model, text, rho)):
        found = outcome.curve[epoch]
        assert found.train_loss == pytest.approx(train_loss, rel=1e-5)
        assert found.validation_loss == pytest.approx(loss, rel=1e-5)
        assert found.validation_score == pytest.approx(math.exp(loss), rel=1e-4)
    assert outcome.curve[-1].train_loss < outcome.curve[0].train_loss
    for one, other in zip(
        kept(own, context, toy_text.make("lstm")).parameters(), model.parameters(), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    final = outcome.final
    for loss, score, part in (
        (final.train_loss, final.train_score, text.train),
        (final.validation_loss, final.validation_score, text.validation),
        (final.test_loss, final.test_score, text.test),
    ):
        assert loss == pytest.approx(evaluated(model, part), rel=1e-5)
        assert score == pytest.approx(math.exp(loss))


def test_a_transformer_reads_blocks_in_the_order_of_the_seed(
    run: Callable[..., Run], toy_text: TaskMaker, text: Data, context: RunContext
) -> None:
    settings = {"lr": 0.05, "weight_decay": 0.1}
    own = run("adamw", "transformer", settings=settings, clip=0.5, accumulate=1)
    outcome = train_on(own, text, context)
    torch.manual_seed(seeds(own, -1))
    model = toy_text.make("transformer")
    optimizer = torch.optim.AdamW(model.parameters(), **settings)

    def step(number: int, inputs: Tensor, targets: Tensor) -> float:
        optimizer.zero_grad()
        loss = surprise(model(inputs), targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        return loss.item()

    for epoch, train_loss in enumerate(by_hand(own, model, text.train, step)):
        found = outcome.curve[epoch]
        assert found.train_loss == pytest.approx(train_loss, rel=1e-4)
        with torch.no_grad():
            loss = surprise(model(text.validation.inputs), text.validation.targets).item()
        assert found.validation_loss == pytest.approx(loss, rel=1e-4)
        assert found.validation_score == pytest.approx(math.exp(loss), rel=1e-3)


@pytest.mark.parametrize(("name", "model"), [("dualadam+sam", "lstm"), ("adamw", "transformer")])
def test_a_killed_run_goes_on_to_the_same_numbers(
    run: Callable[..., Run], text: Data, context: RunContext, name: str, model: str
) -> None:
    """Ended after its second epoch, dropout included."""
    own = run(name, model, schedule="cosine")
    whole = train_on(own, text, replace(context, out=context.out / "whole"))
    seen: list[int] = []
    with pytest.raises(KillError):
        train_on(own, text, context, killed_after(1, seen))
    torch.rand(7)
    outcome = train_on(own, text, context, killed_after(-1, seen))
    assert seen == [0, 1, 2]
    assert numbers(outcome) == numbers(whole)
    ends = [
        checkpoint.load(checkpoint.checkpoint_path(out, own), CPU)
        for out in (context.out, context.out / "whole")
    ]
    for one, other in zip(*map(tree_leaves, ends), strict=True):
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other


def test_curvature_is_measured_from_the_beginning_of_every_block(
    run: Callable[..., Run], toy_text: TaskMaker, text: Data, context: RunContext
) -> None:
    """A model that is loaded anew carries nothing."""
    own = run()
    found = train_on(own, text, context).curvature
    model = kept(own, context, toy_text.make("lstm"))
    two = [part.batch for part in head(text.train, 2, 2)]
    expected = sharpness(model, toy_text.loss, two).value
    assert found.sharpness == pytest.approx(expected, rel=1e-6)
    # As this task's settings have it: at the end, and not of a trial that is measured quickly.
    assert math.isnan(found.trace)
    quick = train_on(replace(own, curvature="quick"), text, context)
    assert math.isnan(quick.curvature.sharpness)
    for each in (*quick.curve, *train_on(own, text, context).curve):
        assert math.isnan(each.probe_loss)


@pytest.mark.parametrize("name", ["lstm", "transformer"])
def test_losses_of_samples_are_those_of_blocks(
    run: Callable[..., Run], toy_text: TaskMaker, text: Data, context: RunContext, name: str
) -> None:
    """In the order in which the model reads them; their mean is what perplexity is exp of."""
    own = run("adamw", name)
    found = train_on(own, text, context).samples
    model = kept(own, context, toy_text.make(name)).eval()
    for losses, scores_kept, samples in (
        (found.validation_losses, found.validation_scores, text.validation),
        (found.test_losses, found.test_scores, text.test),
    ):
        state, expected = None, []
        for rows in cut(len(samples), TOGETHER) if name == "lstm" else [list(range(len(samples)))]:
            with torch.no_grad():
                if name == "lstm":
                    scores, state = model.read(samples.inputs[rows], first(state, len(rows)))
                else:
                    scores = model(samples.inputs[rows])
            targets = samples.targets[rows]
            expected += [surprise(*each).item() for each in zip(scores, targets, strict=True)]
        assert unpack(losses) == pytest.approx(expected, rel=1e-3)
        assert unpack(scores_kept) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("parts", "processes"), [(2, 1), (1, 2)])
def test_batches_that_go_on_must_stay_whole(
    run: Callable[..., Run], text: Data, context: RunContext, parts: int, processes: int
) -> None:
    message = (
        "lstm reads on from batch to batch, which cannot be split: "
        f"grad-accumulation and processes must be 1, got {parts} and {processes}"
    )
    accelerator = SimpleNamespace(device=CPU, num_processes=processes)
    with pytest.raises(ValueError, match=message):
        train_on(run(accumulate=parts), text, context, accelerator=accelerator)
    assert not context.out.exists()


def test_a_study_that_would_cut_them_is_refused_before_it_starts(
    toy_text: TaskMaker, context: RunContext
) -> None:
    def planned(model: str) -> int:
        options = StudyOptions(["adamw"], model=model, grad_accumulation=2)
        return plan_study("toy-text", options, USUAL, context).setup.accumulate

    with pytest.raises(
        ValueError, match="cannot train toy-text: lstm reads on from batch to batch"
    ):
        planned("lstm")
    assert planned("transformer") == 2


def test_a_study_of_text_knows_its_length_and_its_steps(
    toy_text: TaskMaker, context: RunContext
) -> None:
    asked = StudyOptions(["adamw"], seq_length=40, samples=10, epochs=5)
    study = plan_study("toy-text", asked, USUAL, context)
    # ⌊1 100/40⌋ blocks to train on, of which the first ten; ⌊600/40⌋ and ⌊397/40⌋, at most five.
    counts = [study.facts[f"{part}_samples"] for part in ("train", "validation", "test")]
    assert counts == [10, 5, 5]
    assert (study.setup.length, study.setup.steps_per_epoch, study.setup.steps) == (40, 3, 15)
    assert study.setup.stream == ()
    assert plan_study("toy-text", StudyOptions(["adamw"]), USUAL, context).setup.length == LENGTH
