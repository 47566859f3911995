"""What a trained model keeps of its score when its weights or its inputs change.

It is measured by what happens to models after training: rounding to few bits, noise on weights,
corrupted inputs; and beside it what may explain it: the tails of the weights, and calibration.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from steppe.landscape.objective.batches import Batches
from steppe.landscape.result import Result

if TYPE_CHECKING:
    pass

#: ``metric(outputs, targets)``, a number for each sample.
SampleMetric = Callable[[Any, Any], Tensor]
#: ``measure(model, batches)``, any number.
OwnMeasure = Callable[[nn.Module, Batches], float]

# Samples that compensated rounding is fitted on, where it has no data of its own.
_FITTED_ON = 256


@dataclass(frozen=True)
class Perturbed(Result):
    """A model's results after a perturbation, as means over its draws.

    Attributes
    ----------
    name : str
        The perturbation.
    score, score_error : float
        The mean of the metric over samples, and its standard error over samples and draws; NaN
        without a metric.
    loss, loss_error : float
        The mean loss, and its standard error.
    change, change_error : float
        Score minus the unperturbed model's, sample by sample, and its standard error; the loss's
        where there is no metric.
    draws : int
        How often it was drawn.
    """

    name: str
    score: float
    score_error: float
    loss: float
    loss_error: float
    change: float
    change_error: float
    draws: int
