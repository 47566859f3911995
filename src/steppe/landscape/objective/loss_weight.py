"""What a batch's loss has been divided by: batches are weighted by it, so that means are right.

A loss may be a mean over samples, over the elements of outputs, or over the targets that are not
ignored. :class:`~steppe.landscape.objective.objective.Objective` weights batches by it.
"""

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor

from steppe._shared.validation import checked_weight
from steppe.landscape.objective.batches import Batch, part_named
from steppe.landscape.objective.label_count import LabelCount
from steppe.landscape.objective.loss_check import LossCheck
from steppe.landscape.objective.loss_options import loss_options, weight_of_classes
from steppe.landscape.objective.rerun import Rerun, RerunLoss

#: What a batch's loss is divided by; see :func:`steppe.landscape.hessian`.
Weight = Literal["samples", "sum"] | Callable[[Any, Any], float]

#: ``loss_fn(outputs, targets)``, or for mappings ``loss_fn(outputs, batch)``: a scalar.
LossFunction = Callable[[Any, Any], Tensor]


class LossWeight:
    """Finds by what to weight a batch: the number that its loss has been divided by.

    torch's losses say it (``reduction``, ``weight``, ``ignore_index``), and of Hugging Face's
    models the labels and logits do. Of any other loss it is verified, where data has several
    batches, that it is a mean over samples: a batch's loss is then the mean of its halves' losses,
    and that of two batches together the mean of theirs. Samples of different shapes, such as
    sequences of different lengths, leave open what it is a mean over.

    Parameters
    ----------
    loss_fn : callable or None
        The loss; None takes that of the model's outputs.
    given : str, callable or None
        "samples", "sum", or ``given(outputs, targets)``; None finds it.
    forward : Rerun, optional
        Runs the model, for losses that it computes. Without it these are not verified.
    is_single : bool, default False
        Whether there is one batch only, so that weights don't matter. It is then not verified.
    is_part : bool, default False
        Whether the batches are a part of others, among which their labels weigh.

    Raises
    ------
    ValueError
        ``given`` is neither of these.

    Examples
    --------
    >>> import torch
    >>> import torch.nn.functional as F
    >>> targets = torch.tensor([1, -100, 0])
    >>> batch = Batch(0, (), {}, targets, 3)
    >>> outputs = torch.zeros(3, 2)
    >>> LossWeight(F.cross_entropy).of(batch, outputs, F.cross_entropy(outputs, targets))
    2.0
    """

    def __init__(
        self,
        loss_fn: LossFunction | None,
        given: Weight | None = None,
        forward: Rerun | None = None,
        is_single: bool = False,
        is_part: bool = False,
    ) -> None:
        if given is not None and given not in ("samples", "sum") and not callable(given):
            raise ValueError(
                f'weight={given!r} is not one of "samples", "sum", or a function of outputs and '
                "targets that returns what the loss is divided by"
            )
        self._loss_fn, self._options = loss_fn, loss_options(loss_fn)
        self._says_sum = given is None and self._options.get("reduction") == "sum"
        self._given: Weight | None = "sum" if self._says_sum else given
        # A class of one's own may inherit ``reduction`` and divide by something all the same.
        self._is_unverified_sum = self._says_sum and "kind" not in self._options
        self._labels = LabelCount(forward, is_single and not is_part)
        self._check = LossCheck(RerunLoss(loss_fn, forward), self.is_sum, is_single)

    @property
    def is_sum(self) -> bool:
        """Whether batches' losses are added up, and not averaged."""
        return self._given == "sum"

    def of(self, batch: Batch, outputs: Any, loss: Tensor) -> float:
        """Return the weight of a batch.

        Raises
        ------
        ValueError
            The loss is no mean over samples, and it cannot be found what it is a mean over.
        """
        is_own = self._is_the_models_own(outputs, loss)
        if self._given == "sum":
            # Of shapes that broadcast, samples are compared with each other.
            if self._is_unverified_sum or (self._says_sum and _broadcast(outputs, batch.targets)):
                self._check.verify(batch, outputs, loss, is_own)
            return 1.0
        if self._given == "samples":
            self._check.believe(batch)
            return float(batch.size)
        if callable(self._given):
            return checked_weight(self._given(outputs, batch.targets))
        found = self._labels.of(batch, outputs, loss) if is_own else self._known(batch, outputs)
        if found is None:
            self._check.verify(batch, outputs, loss, is_own)
            return float(batch.size)
        return found

    def _known(self, batch: Batch, outputs: Any) -> float | None:
        """Return the weight that the kind of loss tells, or None."""
        kind = self._options.get("kind")
        if not isinstance(outputs, Tensor) or not isinstance(batch.targets, Tensor):
            return None
        if kind == "classes":
            return weight_of_classes(batch.targets, self._options)
        if kind == "elements":
            if self._options.get("reduction") == "batchmean":
                return float(len(outputs))
            return None if _broadcast(outputs, batch.targets) else float(outputs.numel())
        return None

    def _is_the_models_own(self, outputs: Any, loss: Tensor) -> bool:
        """Whether it is the loss that the model has computed, also if ``loss_fn`` returns that."""
        own = part_named("loss", outputs)
        is_same = isinstance(own, Tensor) and own.data_ptr() == loss.data_ptr()
        return self._loss_fn is None or is_same


def _broadcast(outputs: Any, targets: Any) -> bool:
    """Whether samples may be compared with each other, as outputs (B, 1) with targets (B,) are."""
    are_tensors = isinstance(outputs, Tensor) and isinstance(targets, Tensor)
    is_of_elements = are_tensors and targets.is_floating_point()
    return is_of_elements and outputs.shape != targets.shape
