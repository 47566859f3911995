"""Scores and losses, sample by sample, against their formulas."""

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from steppe.compare.data.streams import hits as stream_hits
from steppe.compare.data.streams import stream_loss
from steppe.compare.metrics.scores import (
    ACCURACY,
    PERPLEXITY,
    Metric,
    each_loss,
    losses_by_sample,
    perplexity,
    token_loss,
)

SIZES = (7, 1, 12)


@pytest.fixture
def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(sum(SIZES), 4, generator=generator)
    targets = torch.randint(4, (sum(SIZES),), generator=generator)
    return list(zip(outputs.split(SIZES), targets.split(SIZES), strict=True))


def test_the_unit_of_accuracy_is_percent_and_higher_is_better() -> None:
    metric = ACCURACY.described("accuracy")
    assert (metric.name, metric.unit, metric.factor) == ("accuracy", "%", 100.0)
    assert metric.higher_is_better
    assert ACCURACY.of(0.75) == 0.75


@pytest.mark.parametrize("count", [2, 11, 33_278])
def test_perplexity_is_the_number_of_words_that_are_as_likely(count: int) -> None:
    values = PERPLEXITY.values(
        torch.zeros(3, 2, count, dtype=torch.float64), torch.ones(3, 2).long()
    )
    assert values.tolist() == pytest.approx([math.log(count)] * 3)
    assert PERPLEXITY.of(values.mean().item()) == pytest.approx(count)


def test_the_samples_shares_in_perplexity_are_their_mean_surprises() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 5, 7, dtype=torch.float64, generator=generator)
    targets = torch.randint(7, (3, 5), generator=generator)
    expected = [
        np.mean(
            [
                -math.log(np.exp(row[target]) / np.exp(row).sum())
                for row, target in zip(logits[k].numpy(), targets[k], strict=True)
            ]
        )
        for k in range(3)
    ]
    assert PERPLEXITY.values(logits, targets).tolist() == pytest.approx(expected, rel=1e-12)


def test_of_perplexity_lower_is_better_and_it_has_no_unit() -> None:
    metric = PERPLEXITY.described("perplexity")
    assert (metric.name, metric.unit, metric.factor) == ("perplexity", "", 1.0)
    assert (metric.higher_is_better, metric.of_mean) == (False, "exp")


@pytest.mark.parametrize("mean", [0.0, 0.25, 3.0])
def test_the_score_follows_from_the_mean(mean: float) -> None:
    expected = {"itself": mean, "exp": math.exp(mean), "root": math.sqrt(mean)}
    for of_mean, score in expected.items():
        metric = Metric(torch.eq, of_mean=of_mean)
        assert metric.of(mean) == pytest.approx(score)
        assert metric.described("m").of_mean == of_mean
    assert math.isnan(Metric(torch.eq, of_mean="root").of(-1.0))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"values": 3}, TypeError, "values=3 must be a function of outputs and targets, or a"),
        ({"of_mean": "log"}, ValueError, "of_mean='log' is not one of itself, exp, root"),
        ({"factor": 0.0}, ValueError, "factor=0.0 must be a finite number above 0"),
        ({"factor": math.nan}, ValueError, "factor=nan must be a finite number above 0"),
        ({"factor": math.inf}, ValueError, "factor=inf must be a finite number above 0"),
    ],
)
def test_a_metric_that_makes_no_sense_is_refused(arguments, error, message: str) -> None:
    with pytest.raises(error, match=message):
        Metric(**{"values": torch.eq, **arguments})


def test_perplexity_overflows_to_infinity() -> None:
    assert perplexity(0.0) == 1.0
    assert perplexity(600.0) == pytest.approx(float(np.exp(np.longdouble(600.0))))
    for loss in (710.0, 1e300, math.inf):
        assert perplexity(loss) == math.inf
    assert perplexity(-1e4) == 0.0


def test_a_loss_that_is_no_number_has_the_worst_perplexity() -> None:
    """A study's storage takes infinite scores, but no NaN."""
    assert perplexity(math.nan) == math.inf


def test_the_loss_of_tokens_is_their_mean_surprise() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 5, 7, dtype=torch.float64, generator=generator)
    targets = torch.randint(7, (3, 5), generator=generator)
    surprises = []
    for row, column in np.ndindex(3, 5):
        weights = np.exp(logits[row, column].numpy())
        surprises.append(-math.log(weights[targets[row, column]] / weights.sum()))
    found = token_loss(logits.requires_grad_(), targets)
    assert found.item() == pytest.approx(np.mean(surprises), rel=1e-12)
    found.backward()
    # softmax − one-hot, over the number of tokens
    expected = logits.detach().softmax(-1) - torch.nn.functional.one_hot(targets, 7)
    torch.testing.assert_close(logits.grad, expected / 15)


def single(loss, outputs: torch.Tensor, targets: torch.Tensor) -> list[float]:
    """Take the loss of one sample after the other, as batches of one."""
    return [
        loss(outputs[row : row + 1], targets[row : row + 1]).item() for row in range(len(targets))
    ]


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("cross-entropy", (9, 4)),
        ("tokens", (6, 5, 7)),
        # Two places for each of three tasks, and two that all tasks share.
        ("own places", (9, 6)),
        ("shared places", (9, 2)),
        ("squares", (9, 4)),
        ("looks at values", (9, 4)),
    ],
)
def test_the_loss_of_each_sample_is_that_of_a_batch_of_one(name: str, shape) -> None:
    generator = torch.Generator().manual_seed(2)
    outputs = torch.randn(shape, generator=generator)
    places = 6 if "places" in name else shape[-1]
    targets = torch.randint(places, shape[:-1], generator=generator)
    loss = {
        "cross-entropy": F.cross_entropy,
        "tokens": token_loss,
        "own places": partial(stream_loss, classes=2),
        "shared places": partial(stream_loss, classes=2),
        "squares": lambda x, y: (x.logsumexp(1) - y).square().mean(),
        # vmap refuses to branch on a value.
        "looks at values": lambda x, y: F.cross_entropy(x, y) if y.sum() > 0 else x.mean(),
    }[name]
    found = each_loss(loss, outputs, targets, len(outputs))
    expected = single(loss, outputs, targets)
    assert found.tolist() == pytest.approx(expected, rel=1e-6)
    assert len(set(expected)) > 1
    mean = loss(outputs, targets).item()
    by_sample = losses_by_sample(loss, outputs, targets, len(outputs), mean)
    if name == "looks at values":
        # Of a batch of one it is another than within a larger one.
        assert by_sample is None
    else:
        assert by_sample is not None
        assert torch.equal(by_sample[0], found.double())
        assert np.mean(expected) == pytest.approx(mean, rel=1e-5)


def test_outputs_and_targets_are_cut_whatever_they_are_nested_in() -> None:
    generator = torch.Generator().manual_seed(2)
    scores = torch.randn(9, 4, generator=generator)
    labels = torch.randint(4, (9,), generator=generator)

    def loss(outputs: dict, targets: tuple) -> torch.Tensor:
        found: torch.Tensor = outputs["scale"] * F.cross_entropy(outputs["scores"][0], targets[1])
        return found

    outputs, targets = {"scores": [scores], "scale": 3.0}, ("name", labels)
    mean = loss(outputs, targets).item()
    found, _ = losses_by_sample(loss, outputs, targets, 9, mean)
    expected = [3 * each for each in single(F.cross_entropy, scores, labels)]
    assert found.tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "loss",
    [
        partial(F.cross_entropy, reduction="sum"),
        partial(F.cross_entropy, weight=torch.tensor([1.0, 2.0, 3.0, 9.0])),
        partial(F.cross_entropy, ignore_index=0),
        partial(F.cross_entropy, reduction="none"),
    ],
    ids=["sum", "weighted", "ignored", "none"],
)
def test_what_is_no_mean_over_samples_has_no_losses_of_samples(loss) -> None:
    generator = torch.Generator().manual_seed(2)
    outputs = torch.randn(9, 4, generator=generator)
    targets = torch.tensor([0, 0, 0, 3, 1, 2, 0, 3, 1])
    mean = float(loss(outputs, targets).mean())
    assert losses_by_sample(loss, outputs, targets, 9, mean) is None


def test_accuracy_says_of_each_sample_whether_it_is_right(batches: list) -> None:
    counts = []
    for outputs, targets in batches:
        rows = zip(outputs.tolist(), targets.tolist(), strict=True)
        expected = [row.index(max(row)) == target for row, target in rows]
        assert ACCURACY.values(outputs, targets).tolist() == expected
        counts.append(sum(expected))
    assert 0 < sum(counts) < sum(SIZES)


@pytest.mark.parametrize("places", [2, 6])
def test_in_a_stream_a_sample_is_right_among_the_classes_of_its_own_task(places: int) -> None:
    generator = torch.Generator().manual_seed(4)
    outputs = torch.randn(20, places, generator=generator)
    targets = torch.randint(6, (20,), generator=generator)
    expected = []
    for row, target in zip(outputs.tolist(), targets.tolist(), strict=True):
        start = target - target % 2 if places == 6 else 0
        own = row[start : start + 2]
        expected.append(own.index(max(own)) == target % 2)
    assert stream_hits(outputs, targets, classes=2).tolist() == expected
    assert 0 < sum(expected) < 20


class Collected:
    """What torchmetrics' metrics have, without being callable."""

    higher_is_better = False

    def update(self, outputs: Any, targets: Any) -> None: ...

    def compute(self) -> float:
        return 0.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (Collected, "values=Collected is a class: expected an instance, Collected"),
        (nn.ModuleDict(), "values is a collection of metrics: expected one"),
        (3, "values=3 must be a function of outputs and targets, or a metric of"),
    ],
)
def test_what_is_no_metric_is_refused(values: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        Metric(values)


def test_a_metric_need_not_be_callable() -> None:
    assert Metric(Collected()).is_updated
    assert not Metric(Collected()).higher_is_better
