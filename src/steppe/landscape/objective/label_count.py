"""How many labels a loss that a model computes itself is a mean over.

:mod:`~steppe.landscape.objective.loss_weight` weights batches of language models by it.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from steppe.landscape.objective.batches import Batch, part_named
from steppe.landscape.objective.loss_options import IGNORED
from steppe.landscape.objective.rerun import Rerun

#: The mean cross-entropy of classes, from the first or the second label of each sequence on; or the
#: mean square, or the mean binary cross-entropy, of each element.
_Kind = Literal["classes", "classes but the first", "squares", "binary"]
_KINDS: tuple[_Kind, ...] = ("classes", "classes but the first", "squares", "binary")

# Losses of labels that differ by less than this share are alike: with any weights they have nearly
# the same mean.
_LEAST_SPREAD = 0.05


class LabelCount:
    """Counts the labels that a model's own loss is a mean over, as Hugging Face's models' are.

    In causal language models the first label of each sequence has no prediction, and labels that
    are no classes (−100, or another number) count nowhere. Which mean it is, is found from the
    value of the loss.

    Parameters
    ----------
    forward : Rerun or None
        Runs the model on a batch once more. Where all labels have nearly the same loss, as in a new
        network, the value tells nothing; elsewhere among the parameters it does.
    """

    def __init__(self, forward: Rerun | None) -> None:
        self._forward = forward
        self._kind: _Kind | None = None
        # Whether the first loss is another: all batches have to be weighted in one unit.
        self._is_other = False
        self._verified = -1

    def of(self, batch: Batch, outputs: Any, loss: Tensor) -> float | None:
        """Return the number of labels; None where the loss is no such mean.

        Raises
        ------
        ValueError
            It is no such mean although those of the batches before are; or that cannot be told.
        """
        labels, logits = part_named("labels", batch.targets), part_named("logits", outputs)
        if self._is_other or not isinstance(labels, Tensor) or not labels.ndim:
            return None
        losses = _label_losses(logits, labels, _KINDS if self._kind is None else (self._kind,))
        counts = {kind: each.numel() for kind, each in losses.items()}
        if 0 in counts.values() and (loss.isnan() or not loss):
            return 0.0  # a mean over no label at all
        kinds = _fitting(losses, loss)
        if batch.position > self._verified and not _tell(losses, kinds):
            kinds = self._fitting_elsewhere(batch, kinds)
        self._verified = max(self._verified, batch.position)
        if not kinds and self._kind is not None:
            raise ValueError(
                f"the loss that the model computes for batch {batch.position} is not the mean over "
                "its labels, as those of the batches before it are: pass weight=, a function of "
                "outputs and batch that returns what the loss is divided by"
            )
        if not kinds:
            self._is_other = True
            return None
        if len({counts[kind] for kind in kinds}) > 1:
            raise ValueError(
                "all labels have nearly the same loss, so that it cannot be told which of them the "
                "loss is a mean over: pass weight=, a function of outputs and batch that returns "
                "the number of labels that count"
            )
        if len(kinds) == 1:
            self._kind = kinds[0]
        return float(counts[kinds[0]])

    @torch.no_grad()
    def _fitting_elsewhere(self, batch: Batch, kinds: list[_Kind]) -> list[_Kind]:
        """Return the kinds that hold at other parameters, too; all where that cannot be told."""
        if self._forward is None:
            return kinds
        outputs, targets = self._forward(batch, elsewhere=True)
        labels, logits = part_named("labels", targets), part_named("logits", outputs)
        loss = part_named("loss", outputs)
        if not isinstance(loss, Tensor) or not math.isfinite(loss.item()):
            return kinds
        return _fitting(_label_losses(logits, labels, kinds), loss)


@torch.no_grad()
def _label_losses(logits: Any, labels: Tensor, kinds: Iterable[_Kind]) -> dict[_Kind, Tensor]:
    """Return the loss of each label that counts, of shape (number of these,), for each kind."""
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        return {}
    # Half precision is too coarse to tell kinds apart.
    logits = logits if logits.element_size() >= 4 else logits.float()
    are_whole = not (labels.is_floating_point() or labels.dtype == torch.bool)
    are_classes = are_whole and logits.shape[:-1] == labels.shape
    are_elements = logits.squeeze().shape == labels.squeeze().shape
    found: dict[_Kind, Tensor] = {}
    for kind in kinds:
        if kind in ("squares", "binary"):
            if are_elements:
                found[kind] = _element_losses(logits, labels, kind)
        elif are_classes and kind == "classes":
            found[kind] = _class_losses(logits, labels)
        elif are_classes and labels.ndim > 1:
            found[kind] = _class_losses(logits[..., :-1, :], labels[..., 1:])
    return found


def _class_losses(logits: Tensor, labels: Tensor) -> Tensor:
    # What stands for no label is −100 as a rule, and −1, 255 or another number in some models.
    are_labels = (labels >= 0) & (labels < logits.shape[-1])
    known = torch.where(are_labels, labels.long(), IGNORED).flatten()
    losses = F.cross_entropy(logits.flatten(0, -2), known, reduction="none", ignore_index=IGNORED)
    return losses[are_labels.flatten()]


def _element_losses(logits: Tensor, labels: Tensor, kind: _Kind) -> Tensor:
    square, binary = F.mse_loss, F.binary_cross_entropy_with_logits
    pair = logits.squeeze(), labels.squeeze().to(logits)
    return (square if kind == "squares" else binary)(*pair, reduction="none").flatten()


def _fitting(losses: Mapping[_Kind, Tensor], loss: Tensor) -> list[_Kind]:
    """Return the kinds of which a loss is the mean."""
    precision = 5e-5 if loss.element_size() >= 4 else 2.5e-3
    return [
        kind
        for kind, each in losses.items()
        if math.isclose(each.double().mean().item(), loss.item(), rel_tol=precision)
    ]


def _tell(losses: Mapping[_Kind, Tensor], kinds: list[_Kind]) -> bool:
    """Whether labels' losses differ by enough to tell their mean from a weighted one."""
    spreads = (losses[kind].double() for kind in kinds)
    return all(
        each.numel() < 2 or bool(each.std() > _LEAST_SPREAD * each.mean()) for each in spreads
    )
