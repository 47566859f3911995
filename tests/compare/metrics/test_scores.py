"""Scores and losses, summed up over batches, against their formulas."""

import math

import numpy as np
import pytest
import torch

from steppe.compare.metrics.scores import ACCURACY, PERPLEXITY, Score, perplexity, token_loss

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
