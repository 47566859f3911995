"""Scores and losses, summed up over batches, against their formulas."""

import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from steppe.compare.data.streams import hits as stream_hits
from steppe.compare.data.streams import stream_loss
from steppe.compare.metrics.scores import (
    ACCURACY,
    PERPLEXITY,
    Score,
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


def scored(score: Score, batches: list, loss: float) -> float:
    return score.total(sum(score.sums(*batch) for batch in batches), loss)


def test_accuracy_counts_samples_and_not_batches(batches: list) -> None:
    pairs = [
        (row, target)
        for outputs, targets in batches
        for row, target in zip(outputs.tolist(), targets.tolist(), strict=True)
    ]
    hits = sum(row.index(max(row)) == target for row, target in pairs)
    assert 0 < hits < len(pairs)
    assert scored(ACCURACY, batches, math.nan) == pytest.approx(hits / len(pairs))
    # The batches' own accuracies have another mean.
    shares = [ACCURACY.total(ACCURACY.sums(*batch), math.nan) for batch in batches]
    assert np.mean(shares) != pytest.approx(hits / len(pairs))


def test_one_sample_more_is_the_same_difference_whatever_the_accuracy() -> None:
    """As rounded to single precision the differences would not be equal."""
    hits = [901, 872, 863, 914]
    one, other = (
        [ACCURACY.total(torch.tensor([count + more, 1000]), math.nan) for count in hits]
        for more in (1, 0)
    )
    differences = np.subtract(one, other)
    assert differences == pytest.approx([1e-3] * 4, rel=1e-12)


def test_the_unit_of_accuracy_is_percent_and_higher_is_better() -> None:
    metric = ACCURACY.metric
    assert (metric.name, metric.unit, metric.factor) == ("accuracy", "%", 100.0)
    assert metric.higher_is_better
    assert ACCURACY.parts(torch.tensor([3, 4])) == ()


@pytest.mark.parametrize("count", [2, 11, 33_278])
def test_perplexity_is_the_number_of_words_that_are_as_likely(count: int) -> None:
    assert scored(PERPLEXITY, [(torch.zeros(3), torch.zeros(3))], math.log(count)) == (
        pytest.approx(count)
    )


def test_of_perplexity_lower_is_better_and_it_has_no_unit() -> None:
    metric = PERPLEXITY.metric
    assert (metric.name, metric.unit, metric.factor) == ("perplexity", "", 1.0)
    assert not metric.higher_is_better
    assert PERPLEXITY.parts(torch.zeros(())) == ()


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
    found = losses_by_sample(loss, outputs, targets)
    expected = single(loss, outputs, targets)
    assert found.tolist() == pytest.approx(expected, rel=1e-6)
    assert len(set(expected)) > 1
    if name != "looks at values":
        assert np.mean(expected) == pytest.approx(loss(outputs, targets).item(), rel=1e-5)


def test_accuracy_says_of_each_sample_whether_it_is_right(batches: list) -> None:
    assert ACCURACY.hits is not None
    for outputs, targets in batches:
        rows = zip(outputs.tolist(), targets.tolist(), strict=True)
        assert ACCURACY.hits(outputs, targets).tolist() == [
            row.index(max(row)) == target for row, target in rows
        ]
    assert PERPLEXITY.hits is None


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
