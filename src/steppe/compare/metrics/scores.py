"""How predictions are scored over a whole set of samples."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from steppe.compare.records.results import Metric

Loss = Callable[[Tensor, Tensor], Tensor]


def _alone(sums: Tensor) -> tuple[float, ...]:
    """Give no parts: all samples are of one task."""
    return ()


@dataclass(frozen=True)
class Score:
    """What is summed up over batches, and what the sums come to.

    Attributes
    ----------
    metric : Metric
        The score's name and unit.
    sums : callable
        ``sums(outputs, targets)``, a batch's part, which is added to the others'.
    total : callable
        ``total(sums, loss)``, the score of all samples, from the sums and their mean loss.
    parts : callable
        ``parts(sums)``, the score of each task of a stream that has samples; of others empty.
    """

    metric: Metric
    sums: Callable[[Tensor, Tensor], Tensor]
    total: Callable[[Tensor, float], float]
    parts: Callable[[Tensor], tuple[float, ...]] = _alone


def _hits(outputs: Tensor, targets: Tensor) -> Tensor:
    hits = (outputs.argmax(dim=1) == targets).sum()
    return torch.stack([hits, torch.full_like(hits, len(targets))])


def _share(sums: Tensor, loss: float) -> float:
    # Tensors of whole numbers are divided in single precision: differences that are equal, such as
    # one sample on each seed, would no longer be so.
    hits, count = sums.tolist()
    return float(hits / count)


def _nothing(outputs: Tensor, targets: Tensor) -> Tensor:
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
ACCURACY = Score(Metric(), _hits, _share)

#: Of a token, lower is better: among so many equally likely ones a guess would be as hard.
PERPLEXITY = Score(
    Metric("perplexity", unit="", factor=1.0, higher_is_better=False),
    _nothing,
    lambda sums, loss: perplexity(loss),
)


def token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy over the tokens of a batch.

    Parameters
    ----------
    logits : Tensor
        (sequences, tokens, vocabulary).
    targets : Tensor
        (sequences, tokens), what comes next.
    """
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
