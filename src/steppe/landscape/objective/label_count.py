"""How many labels a loss that a model computes itself is a mean over.

:mod:`~steppe.landscape.objective.loss_weight` weights batches of language models by it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from steppe.landscape.objective.batches import Batch
from steppe.landscape.objective.loss_options import IGNORED


def part_named(name: str, value: Any) -> Any:
    """Return a mapping's entry or an object's attribute, or None."""
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)


class LabelCount:
    """Counts the labels that a model's own loss is a mean over, as Hugging Face's models' are.

    In causal language models the first label of each sequence has no prediction. Which of both
    counts holds is found from the value of the loss.

    Parameters
    ----------
    forward : callable or None
        Runs the model on a batch, and returns outputs and targets: where all logits are alike the
        value does not tell, and the loss of the first labels alone does.
    """

    def __init__(self, forward: Callable[[Batch], tuple[Any, Any]] | None) -> None:
        self._forward = forward
        self._begin: int | None = None
        # Whether the first loss is another: all batches have to be weighted in one unit.
        self._is_other = False

    def of(self, batch: Batch, outputs: Any, loss: Tensor) -> float | None:
        """Return the number of labels; None where the loss is no such mean.

        Raises
        ------
        ValueError
            It cannot be told whether the first labels count.
        """
        labels, logits = part_named("labels", batch.targets), part_named("logits", outputs)
        if not isinstance(labels, Tensor) or not labels.ndim:
            return None
        if labels.is_floating_point():
            return float(labels.numel()) if _is_mean_of_elements(logits, labels, loss) else None
        if self._is_other:
            return None
        known = self._begin
        is_known = known is not None and _count(labels, known) > 0
        candidates = (known,) if known is not None and is_known else (0, 1)[: labels.ndim]
        begins = _beginnings(logits, labels, loss, candidates)
        if is_known:
            if not begins:
                raise ValueError(
                    f"the loss that the model computes for batch {batch.position} is not the mean "
                    "over its labels, as those of the batches before it are: pass weight=, a "
                    "function of outputs and batch that returns what the loss is divided by"
                )
        elif not begins:
            # A mean over no label at all is NaN: it weighs nothing, and tells nothing.
            self._is_other = bool(_count(labels, 1)) or not bool(loss.isnan())
            return None if self._is_other else 0.0
        if len(begins) == 2 and _count(labels, 0) != _count(labels, 1):
            begins = [self._beginning_by_first_labels(batch, labels)]
        if len(begins) == 1:
            self._begin = begins[0]
        return _count(labels, begins[0])

    @torch.no_grad()
    def _beginning_by_first_labels(self, batch: Batch, labels: Tensor) -> int:
        alone = labels.clone()
        alone[..., 1:] = IGNORED
        part = batch._replace(keywords={**batch.keywords, "labels": alone}).copied()
        if self._forward is None or "labels" not in batch.keywords:
            raise ValueError(
                "the logits are all alike, so that it cannot be told whether the first label of "
                "each sequence counts: pass weight=, a function of outputs and batch that returns "
                "the number of labels that the loss is a mean over"
            )
        loss = part_named("loss", self._forward(part)[0])
        return 0 if bool(torch.isfinite(loss)) and float(loss) != 0.0 else 1


def _count(labels: Tensor, begin: int) -> float:
    counted = labels[..., begin:] if labels.ndim > 1 else labels
    return float((counted != IGNORED).sum())


def _beginnings(logits: Any, labels: Tensor, loss: Tensor, candidates: Sequence[int]) -> list[int]:
    """Return the positions that the first label a loss, a cross-entropy, is a mean over may have.

    None where the loss is something else, or there is no label.
    """
    if not isinstance(logits, Tensor) or logits.shape[:-1] != labels.shape:
        return []
    found = []
    with torch.no_grad():
        for begin in candidates:
            predicted = logits if begin == 0 else logits[..., :-1, :]
            counted = labels if begin == 0 else labels[..., 1:]
            value = F.cross_entropy(predicted.flatten(0, -2).float(), counted.flatten())
            if _are_close(value, loss):
                found.append(begin)
    return found


@torch.no_grad()
def _is_mean_of_elements(logits: Any, labels: Tensor, loss: Tensor) -> bool:
    """Whether a loss is the mean square or the mean cross-entropy of labels that are no classes."""
    if not isinstance(logits, Tensor) or logits.squeeze().shape != labels.squeeze().shape:
        return False
    pair = logits.squeeze().double(), labels.squeeze().double()
    losses = F.mse_loss, F.binary_cross_entropy_with_logits
    return any(_are_close(each(*pair), loss) for each in losses)


def _are_close(value: Tensor, loss: Tensor) -> bool:
    return math.isclose(value.item(), loss.item(), rel_tol=1e-2 * loss.element_size() ** -2)
