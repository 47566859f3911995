"""Scores of predictions: what each sample is worth, and the score that follows from the mean.

A task names its metrics; evaluation collects them over a data set and over processes.
"""

import copy
import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steppe.compare.records.choices import OfMean
from steppe.compare.records.of_mean import OF_MEAN
from steppe.compare.records.results import MetricDescription
from steppe.landscape import cut

Loss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Metric:
    """How outputs are scored.

    Attributes
    ----------
    values : callable or torchmetrics.Metric
        ``values(outputs, targets)`` returns a number for each sample of a batch, in one dimension;
        their mean decides. Or a metric of torchmetrics, which is updated with outputs and targets
        of each batch; then intervals lack the share of their errors that comes of the samples.
    higher_is_better : bool, optional
        Whether more is better. Default: what a metric of torchmetrics says, else True.
    of_mean : "itself", "exp" or "root", default "itself"
        The score as a function of the mean: "root" of squared errors is their root mean square.
    unit : str, default ""
        Unit that the score is shown in.
    factor : float, default 1
        From the score to the unit: 100 shows a share in %.

    Raises
    ------
    TypeError
        ``values`` can neither be called nor updated.
    ValueError
        ``of_mean`` is not one of the three, or ``factor`` is no positive number.

    Examples
    --------
    >>> square = Metric(lambda y, t: (y - t).square().mean(1), False, of_mean="root", unit="m")
    >>> square.of(4.0)
    2.0
    """

    values: Any
    higher_is_better: bool | None = None
    of_mean: OfMean = "itself"
    unit: str = ""
    factor: float = 1.0

    def __post_init__(self) -> None:
        _check_values(self.values)
        if self.higher_is_better is None:
            says = getattr(self.values, "higher_is_better", None)
            object.__setattr__(self, "higher_is_better", says is not False)
        if self.of_mean not in OF_MEAN:
            raise ValueError(f"of_mean={self.of_mean!r} is not one of {', '.join(OF_MEAN)}")
        if not 0 < self.factor < math.inf:
            raise ValueError(f"factor={self.factor!r} must be a finite number above 0")

    @property
    def is_updated(self) -> bool:
        """Whether it is a metric of torchmetrics, which keeps the sums itself."""
        return hasattr(self.values, "update") and hasattr(self.values, "compute")

    def of(self, mean: float) -> float:
        """Return the score that belongs to a mean over samples."""
        return OF_MEAN[self.of_mean](mean)

    def described(self, name: str) -> MetricDescription:
        """Return what reports say of it."""
        return MetricDescription(
            name, self.unit, self.factor, bool(self.higher_is_better), of_mean=self.of_mean
        )


def _check_values(values: Any) -> None:
    if isinstance(values, type):
        raise TypeError(
            f"values={values.__name__} is a class: expected an instance, {values.__name__}(…)"
        )
    if isinstance(values, dict | nn.ModuleDict):
        raise TypeError(
            "values is a collection of metrics: expected one; give each a name of its own in "
            "metrics"
        )
    if not callable(values) and not (hasattr(values, "update") and hasattr(values, "compute")):
        raise TypeError(
            f"values={values!r} must be a function of outputs and targets, or a metric of "
            "torchmetrics: with update(), compute(), reset() and to()"
        )


def losses_by_sample(
    loss: Loss,
    outputs: Any,
    targets: Any,
    count: int,
    mean: float,
    weight: Callable[[Any, Any], float] | None = None,
) -> tuple[Tensor, Tensor] | None:
    """Return the loss and the weight of each sample of a batch, whose loss is their mean.

    Tensors with a row for each sample are cut into these, whatever they are nested in.

    Parameters
    ----------
    loss : callable
        ``loss(outputs, targets)``, the mean over a batch.
    outputs, targets
        Of a batch.
    count : int
        Samples of the batch.
    mean : float
        The loss of the batch.
    weight : callable, optional
        ``weight(outputs, targets)``, what a batch's loss is divided by. Default: its samples.

    Returns
    -------
    (Tensor, Tensor) or None
        In float64, of shape (samples,). None where the batch cannot be cut into samples, or its
        loss is not the mean of theirs, as a sum, or a mean over tokens without their weight.

    Examples
    --------
    >>> outputs, targets = torch.zeros(2, 4), torch.tensor([0, 3])
    >>> losses_by_sample(torch.nn.functional.cross_entropy, outputs, targets, 2, math.log(4))[0]
    tensor([1.3863, 1.3863], dtype=torch.float64)
    """
    try:
        found = each_loss(loss, outputs, targets, count).double()
        weights = torch.ones_like(found)
        if weight is not None:
            pairs = _samples(outputs, targets, count)
            weights = found.new_tensor([float(weight(*each)) for each in pairs])
    except Exception:  # a user's loss may refuse what was cut in any way
        return None
    if found.shape != (count,):
        return None
    # The mean over no token is NaN.
    found = found.where(weights != 0, 0.0)
    is_mean = _is_close(float((found * weights).sum() / weights.sum()), mean)
    return (found, weights) if is_mean else None


def each_loss(loss: Loss, outputs: Any, targets: Any, count: int) -> Tensor:
    """Return the loss of each sample of a batch as a batch of its own, of shape (samples,)."""
    if _is_of_torch(loss) and isinstance(outputs, Tensor) and isinstance(targets, Tensor):
        with suppress(RuntimeError, NotImplementedError):
            # Refused: an operator without a rule for batches.
            return torch.func.vmap(lambda x, y: loss(x.unsqueeze(0), y.unsqueeze(0)))(
                outputs, targets
            )
    # A loss may keep a running mean, or a centre: that of the batches alone.
    own = loss if inspect.isroutine(loss) else copy.deepcopy(loss)
    return torch.stack([own(*each) for each in _samples(outputs, targets, count)])


def _samples(outputs: Any, targets: Any, count: int) -> Iterator[tuple[Any, Any]]:
    for row in range(count):
        yield cut(outputs, count, row, row + 1), cut(targets, count, row, row + 1)


def _is_of_torch(loss: Loss) -> bool:
    """Whether a loss is torch's or steppe's, which keep no state and can be vectorised."""
    function = loss.func if isinstance(loss, partial) else getattr(loss, "__func__", loss)
    module = getattr(function, "__module__", None) or type(function).__module__
    return module.partition(".")[0] in ("torch", "steppe")


def _is_close(value: float, other: float) -> bool:
    # Sums in another order and in half precision; other weights differ by far more.
    same = value == other or (math.isnan(value) and math.isnan(other))
    return same or math.isclose(value, other, rel_tol=0.01, abs_tol=1e-6)


def _hits(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.argmax(dim=1) == targets


def token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy over the tokens of a batch, in nats.

    Parameters
    ----------
    logits : Tensor
        (sequences, tokens, vocabulary).
    targets : Tensor
        (sequences, tokens), the token that follows each.
    """
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def _token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.transpose(1, 2), targets, reduction="none").mean(dim=1)


#: The share of samples whose largest output is the target's.
ACCURACY = Metric(_hits, unit="%", factor=100.0)

#: exp of the mean loss of a token: as hard as guessing among so many equally likely tokens.
PERPLEXITY = Metric(_token_losses, higher_is_better=False, of_mean="exp")


def perplexity(loss: float) -> float:
    """Return exp of the mean loss of a token, in nats: infinite where that overflows.

    Examples
    --------
    >>> round(perplexity(math.log(50.0)), 9), perplexity(1e4)
    (50.0, inf)
    """
    return PERPLEXITY.of(loss)
