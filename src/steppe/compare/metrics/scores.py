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
    hits : callable or None, default None
        ``hits(outputs, targets)``, whether each sample was predicted right, if the score is a share
        of samples: an interval then has the share that comes of the samples.
    """

    metric: Metric
    sums: Callable[[Tensor, Tensor], Tensor]
    total: Callable[[Tensor, float], float]
    parts: Callable[[Tensor], tuple[float, ...]] = _no_parts
    hits: Callable[[Tensor, Tensor], Tensor] | None = None


def losses_by_sample(loss: Loss, outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the loss of each sample of a batch, from a loss that is a mean over samples.

    Parameters
    ----------
    loss : callable
        ``loss(outputs, targets)``, the mean over a batch.
    outputs, targets : Tensor
        Of a batch, of shape (samples, …).

    Returns
    -------
    Tensor
        Of shape (samples,).

    Examples
    --------
    >>> outputs, targets = torch.zeros(2, 4), torch.tensor([0, 3])
    >>> losses_by_sample(torch.nn.functional.cross_entropy, outputs, targets)
    tensor([1.3863, 1.3863])
    """

    def of_one(output: Tensor, target: Tensor) -> Tensor:
        return loss(output.unsqueeze(0), target.unsqueeze(0))

    try:
        return torch.func.vmap(of_one)(outputs, targets)
    except (RuntimeError, NotImplementedError):
        # A loss that looks at values, or an operator without a rule for batches.
        return torch.stack([of_one(*each) for each in zip(outputs, targets, strict=True)])


def _hits(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.argmax(dim=1) == targets


def _hits_and_count(outputs: Tensor, targets: Tensor) -> Tensor:
    hits = _hits(outputs, targets).sum()
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
ACCURACY = Score(Metric(), _hits_and_count, _accuracy, hits=_hits)

#: exp of the mean loss of a token: as hard as guessing among so many equally likely tokens.
PERPLEXITY = Score(
    Metric("perplexity", unit="", factor=1.0, higher_is_better=False),
    _no_sums,
    lambda sums, loss: perplexity(loss),
)


def token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy over the tokens of a batch, in nats.

    Parameters
    ----------
    logits : Tensor
        (sequences, tokens, vocabulary).
    targets : Tensor
        (sequences, tokens), the token that follows each.
    """
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
