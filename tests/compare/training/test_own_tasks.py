"""Users' tasks are trained as a plain loop of torch trains them, whatever their batches are."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, WeightedRandomSampler

from helpers.training_runs import LITTLE_CURVATURE, numbers, seeds
from steppe._shared.recipes import find_recipe
from steppe.compare.metrics.curvature import DEFAULT_CURVATURE
from steppe.compare.metrics.scores import Metric
from steppe.compare.tasks.task import Task
from steppe.compare.training.run import Run, RunContext, RunSettings
from steppe.compare.training.train import train

SETTINGS = {"lr": 0.05, "weight_decay": 0.0}


def run(epochs: int = 3, **changes: Any) -> Run:
    setup = {"epochs": epochs, "steps_per_epoch": 4, "batch_size": 6, "schedule": "constant"}
    own = RunSettings("own", "", None, "own", **{**setup, **changes})
    return Run(own, find_recipe("sgd"), SETTINGS, seed=3, curvature="full")


def rows(count: int, seed: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        a, b = torch.randn(2, 3, generator=generator).unbind()
        found.append({"a": a, "b": b, "labels": (a.sum() * b.sum()).clamp(-1, 1)})
    return found


class Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(3, 4), nn.Linear(3, 4)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (self.one(a) * self.other(b)).sum(1)


class WithLoss(Product):
    def forward(self, a: Tensor, b: Tensor, labels: Tensor) -> SimpleNamespace:
        outputs = super().forward(a, b)
        return SimpleNamespace(outputs=outputs, loss=F.mse_loss(outputs, labels))


def error(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square()


ROOT = Metric(error, higher_is_better=False, of_mean="root")
TRAIN, VALIDATION, TEST = rows(22, 0), rows(9, 1), rows(8, 2)
PARTS = {"train": TRAIN, "validation": VALIDATION, "test": TEST}


def as_pairs(samples: list[dict[str, Tensor]]) -> list[Any]:
    return [((each["a"], each["b"]), each["labels"]) for each in samples]


def as_named_pairs(samples: list[dict[str, Tensor]]) -> list[Any]:
    return [({"b": each["b"], "a": each["a"]}, each["labels"]) for each in samples]


def as_triples(samples: list[dict[str, Tensor]]) -> list[Any]:
    return [(each["labels"], each["a"], each["b"]) for each in samples]


def triple_step(model: nn.Module, batch: Any) -> Tensor:
    return F.mse_loss(model(*batch[1:]), batch[0])


def triple_predict(model: nn.Module, batch: Any) -> Tensor:
    found: Tensor = model(*batch[1:])
    return found


def whole_error(outputs: Any, batch: Any) -> Tensor:
    if isinstance(batch, dict):
        return error(outputs.outputs, batch["labels"])
    return error(outputs, batch[0])


KINDS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "several inputs": (as_pairs, {"loss": F.mse_loss, "metrics": {"root": ROOT}}),
    "named inputs": (as_named_pairs, {"loss": F.mse_loss, "metrics": {"root": ROOT}}),
    "mapping": (
        list,
        {"model": WithLoss, "metrics": {"root": replace(ROOT, values=whole_error)}},
    ),
    "predict": (
        as_triples,
        {
            "predict": triple_predict,
            "loss": lambda outputs, batch: F.mse_loss(outputs, batch[0]),
            "metrics": {"root": replace(ROOT, values=whole_error)},
        },
    ),
    "step": (
        as_triples,
        {
            "step": triple_step,
            "predict": triple_predict,
            "metrics": {"root": replace(ROOT, values=whole_error)},
        },
    ),
}


def own_task(kind: str, **changes: Any) -> Task:
    form, content = KINDS[kind]
    parts = {name: form(samples) for name, samples in PARTS.items()}
    given = {"name": "own", "model": Product, "curvature": LITTLE_CURVATURE, **parts, **content}
    return Task(**{**given, **changes})


def loss_on(model: nn.Module, samples: list[dict[str, Tensor]]) -> Tensor:
    a, b, labels = (torch.stack([x[name] for x in samples]) for name in ("a", "b", "labels"))
    return (Product.forward(model, a, b) - labels).square().mean()


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_an_own_task_is_trained_as_by_a_plain_loop(
    kind: str, parts: int, context: RunContext
) -> None:
    own = run(accumulate=parts)
    outcome = train(own, own_task(kind).load(), context)
    torch.manual_seed(seeds(own, -1))
    model = Product()
    optimizer = torch.optim.SGD(model.parameters(), lr=SETTINGS["lr"])
    for epoch in range(3):
        order = torch.Generator().manual_seed(seeds(own, epoch))
        total = 0.0
        for batch in DataLoader(range(22), 6, shuffle=True, generator=order):
            optimizer.zero_grad()
            loss = loss_on(model, [TRAIN[row] for row in batch.tolist()])
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
        found = outcome.curve[epoch]
        assert found.train_loss == pytest.approx(total / 22, rel=1e-5)
        assert found.validation_loss == pytest.approx(loss_on(model, VALIDATION).item(), rel=1e-5)
        assert found.validation_score == pytest.approx(found.validation_loss**0.5, rel=1e-5)
    assert outcome.final.test_loss == pytest.approx(loss_on(model, TEST).item(), rel=1e-5)
    assert outcome.final.test_score == pytest.approx(outcome.final.test_loss**0.5, rel=1e-5)
    assert outcome.final.test_others == {}


def test_further_metrics_are_scored_on_the_test_set(context: RunContext) -> None:
    def bias(outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs - targets

    metrics = {"root": ROOT, "bias": bias, "square": Metric(error, higher_is_better=False)}
    final = train(run(), own_task("several inputs", metrics=metrics).load(), context).final
    assert final.test_others.keys() == {"bias", "square"}
    assert final.test_others["square"] == pytest.approx(final.test_score**2, rel=1e-6)
    assert abs(final.test_others["bias"]) < final.test_score


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_the_curvature_of_the_same_loss(kind: str, context: RunContext) -> None:
    """Of all 22 training samples, at the weights where training ended."""
    full = replace(DEFAULT_CURVATURE, samples=22)
    found, expected = (
        train(
            run(), own_task(each, curvature=full).load(), replace(context, out=context.out / each)
        )
        for each in (kind, "several inputs")
    )
    for name in ("sharpness", "largest", "trace"):
        value, wanted = getattr(found.curvature, name), getattr(expected.curvature, name)
        assert value == pytest.approx(wanted, rel=0.02), name
        assert wanted == wanted


def test_an_epoch_draws_samples_by_their_weights(context: RunContext) -> None:
    weights = [float(row < 5) for row in range(22)]
    own = run(epochs=1)
    outcome = train(own, own_task("several inputs", sample_weights=weights).load(), context)
    torch.manual_seed(seeds(own, -1))
    model = Product()
    optimizer = torch.optim.SGD(model.parameters(), lr=SETTINGS["lr"])
    order = torch.Generator().manual_seed(seeds(own, 0))
    sampler = WeightedRandomSampler(weights, 22, generator=order)
    total, drawn = 0.0, []
    for batch in DataLoader(range(22), 6, sampler=sampler, generator=order):
        optimizer.zero_grad()
        loss = loss_on(model, [TRAIN[row] for row in batch.tolist()])
        loss.backward()
        optimizer.step()
        total += loss.item() * len(batch)
        drawn += batch.tolist()
    assert max(drawn) < 5
    assert outcome.curve[0].train_loss == pytest.approx(total / 22, rel=1e-5)


def test_a_tasks_own_schedule_takes_the_place_of_the_studys(context: RunContext) -> None:
    asked: list[int] = []

    def schedule(optimizer: Any, steps: int) -> Any:
        asked.append(steps)
        return torch.optim.lr_scheduler.StepLR(optimizer, step_size=4, gamma=0.5)

    curve = train(run(schedule="own"), own_task("step", schedule=schedule).load(), context).curve
    assert asked == [12]
    # The last of an epoch's four steps is taken before lr is halved.
    assert [epoch.lr for epoch in curve] == pytest.approx([0.05, 0.025, 0.0125])


@pytest.mark.parametrize("kind", ["mapping", "step"])
def test_an_own_task_is_the_same_again(kind: str, context: RunContext) -> None:
    first, second = (
        train(run(), own_task(kind).load(), replace(context, out=context.out / str(number)))
        for number in range(2)
    )
    assert numbers(first) == numbers(second)


def test_weights_stay_with_their_samples_where_a_share_is_held_out(context: RunContext) -> None:
    """A weight for each sample that was given, wherever it goes."""
    seen: list[float] = []

    def step(model: nn.Module, batch: Any) -> Tensor:
        if torch.is_grad_enabled() and model.training:
            seen.extend(batch[0].tolist())
        return triple_step(model, batch)

    weights = [float(row % 2) for row in range(22)]
    parts = {"train": as_triples(TRAIN), "validation": 0.2, "test": 0.2}
    task = own_task("step", **parts, step=step, sample_weights=weights)
    train(run(epochs=2), task.load(), context)
    odd = {each["labels"].item() for each in TRAIN[1::2]}
    even = {each["labels"].item() for each in TRAIN[::2]} - odd
    assert set(seen) <= odd
    assert not set(seen) & even


class Drawing(nn.Module):
    """Samples in eval() too, as variational networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(6, 1)

    def forward(self, a: Tensor, b: Tensor, labels: Tensor) -> Tensor:
        found = self.map(torch.cat([a, b], 1)).squeeze(1)
        return found + 0.1 * torch.randn(len(a))  # type: ignore[no-any-return]


class KilledError(Exception):
    """Stands for a kill."""


def test_a_run_that_is_killed_after_its_last_epoch_ends_with_the_same_scores(
    context: RunContext,
) -> None:
    """What evaluation draws does not depend on what has been drawn before."""
    drawn = Task(
        name="drawn", model=Drawing, train=TRAIN, validation=VALIDATION, test=TEST,
        loss=lambda outputs, batch: F.mse_loss(outputs, batch["labels"]),
        curvature=LITTLE_CURVATURE,
    ).load()  # fmt: skip
    whole = train(run(), drawn, replace(context, out=context.out / "whole"))

    def kill(number: int, epoch: Any) -> None:
        if number == 2:
            raise KilledError

    with pytest.raises(KilledError):
        train(run(), drawn, context, kill)
    again = train(run(), drawn, context)
    assert again.final == whole.final
