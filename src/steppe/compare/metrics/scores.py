"""Scores of predictions: accuracy and perplexity, summed up batch by batch.

Tasks choose one; evaluation adds it up over a data set and over processes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from steppe.compare.records.results import Metric

Loss = Callable[[Tensor, Tensor], Tensor]


def _no_parts(sums: Tensor) -> tuple[float, ...]:
    """Return no scores of tasks: all samples are of one task."""
    return ()


@dataclass(frozen=True)
class Score:
    """A score: what is summed up over batches, and the score that follows from the sums.

    Attributes
    ----------
    metric : Metric
        The score's name and unit.
    sums : callable
        ``sums(outputs, targets)`` of a batch, to be added over batches.
    total : callable
        ``total(sums, loss)``, the score of all samples, from the added sums and the mean loss.
    parts : callable
        ``parts(sums)``, the score of each task of a stream that has samples; empty without one.
    """

    metric: Metric
    sums: Callable[[Tensor, Tensor], Tensor]
    total: Callable[[Tensor, float], float]
    parts: Callable[[Tensor], tuple[float, ...]] = _no_parts


def _hits_and_count(outputs: Tensor, targets: Tensor) -> Tensor:
    hits = (outputs.argmax(dim=1) == targets).sum()
    return torch.stack([hits, torch.full_like(hits, len(targets))])


def _accuracy(sums: Tensor, loss: float) -> float:
    # In Python's double precision: torch divides tensors of integers in single precision, and
    # differences of one sample on each seed would no longer be equal.
    hits, count = sums.tolist()
    return float(hits / count)


def _no_sums(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.new_zeros(())


def perplexity(loss: float) -> float:
    """Return exp of the mean loss of a token, in nats: infinite where that overflows.

    Examples
    --------
    >>> round(perplexity(math.log(50.0)), 9), perplexity(1e4)
    (50.0, inf)
    """
    return math.exp(loss) if loss < 700 else math.inf


#: The share of samples whose largest output is the target's.
ACCURACY = Score(Metric(), _hits_and_count, _accuracy)

#: exp of the mean loss of a token: as hard as guessing among so many equally likely tokens.
PERPLEXITY = Score(
    Metric("perplexity", unit="", factor=1.0, higher_is_better=False),
    _no_sums,
    lambda sums, loss: perplexity(loss),
)


def token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy over the tokens of a batch.

    Parameters
    ----------
    logits : Tensor
        (sequences, tokens, vocabulary).
    targets : Tensor
        (sequences, tokens), the token that follows each.
    """
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
