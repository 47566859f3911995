"""Whether a classifier is right as often as it says: calibration error and Brier score."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

_BINS = 15


class Confidence(NamedTuple):
    """What is kept of each sample's prediction: tensors of shape (samples,).

    ``top`` is the largest probability, ``right`` whether its class is the target's, and ``brier``
    the sum over classes of ``(p − [class is the target])²``.
    """

    top: Tensor
    right: Tensor
    brier: Tensor


class Confidences:
    """How sure a classifier is of each sample, of one batch after the other.

    If the rows of all batches are probabilities already, they are taken as they are.

    Examples
    --------
    >>> found = Confidences()
    >>> found.add(torch.tensor([[0.25, 0.75]]), torch.tensor([1]))
    >>> found.joined().top.item()
    0.75
    >>> found.add(torch.tensor([[0.0, 2.0]]), torch.tensor([1]))
    >>> [round(each, 4) for each in found.joined().top.tolist()]
    [0.6225, 0.8808]
    """

    def __init__(self) -> None:
        # One batch of logits may look like probabilities: both are kept until all have been seen.
        self._of_logits: list[Confidence] = []
        self._as_they_are: list[Confidence] = []
        self._are_probabilities = True

    def add(self, logits: Tensor, targets: Tensor) -> None:
        """Take in a batch: (samples, classes), and (samples,) of whole numbers."""
        rows = logits.detach().double()
        self._of_logits.append(_of_probabilities(rows.softmax(dim=1), targets))
        self._as_they_are.append(_of_probabilities(rows, targets))
        # Half precision rounds a probability by a thousandth.
        sums_to_one = ((rows.sum(dim=1) - 1).abs() < 1e-2).all()
        self._are_probabilities &= bool((rows >= 0).all() and sums_to_one)

    def joined(self) -> Confidence:
        """Return what is kept of all samples."""
        found = self._as_they_are if self._are_probabilities else self._of_logits
        return Confidence(*(torch.cat(each) for each in zip(*found, strict=True)))


def _of_probabilities(rows: Tensor, targets: Tensor) -> Confidence:
    top, predicted = rows.max(dim=1)
    own = rows.gather(1, targets[:, None]).squeeze(1)
    brier = rows.square().sum(dim=1) - 2 * own + 1
    return Confidence(top.cpu(), (predicted == targets).double().cpu(), brier.cpu())


def calibration_error(top: Tensor, right: Tensor) -> float:
    """Return the expected calibration error: the mean distance of confidence and accuracy.

    ``Σ_bins (n_bin/n)·|accuracy − mean confidence|`` over 15 bins of equal width of the largest
    probability (Guo et al., ICML 2017, arXiv 1706.04599). It is biased upwards: of few samples even
    a calibrated model has some.

    Examples
    --------
    >>> calibration_error(torch.tensor([0.75, 0.75, 0.75, 0.75]), torch.tensor([1.0, 1, 1, 0]))
    0.0
    """
    if not len(top):
        return math.nan
    # Bins are open on the left: a confidence of 1 lies in the last one.
    number = (top.double() * _BINS).ceil().long().clamp(1, _BINS) - 1
    distances = torch.zeros(_BINS, dtype=torch.float64).index_add_(0, number, right - top.double())
    return float(distances.abs().sum() / len(top))


def is_classification(outputs: object, targets: object) -> bool:
    """Whether outputs are logits (samples, classes), and targets a class for each sample."""
    return (
        isinstance(outputs, Tensor)
        and isinstance(targets, Tensor)
        and outputs.is_floating_point()
        and outputs.ndim == 2
        and outputs.shape[1] > 1
        and targets.dtype == torch.long
        and targets.shape == outputs.shape[:1]
        and bool(((targets >= 0) & (targets < outputs.shape[1])).all())
    )
