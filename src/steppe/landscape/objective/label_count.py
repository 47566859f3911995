"""How many labels a loss that a model computes itself is a mean over.

:mod:`~steppe.landscape.objective.loss_weight` weights batches of language models by it.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from steppe.landscape.objective.batches import Batch, part_named
from steppe.landscape.objective.loss_options import IGNORED
from steppe.landscape.objective.rerun import Rerun
from steppe.landscape.objective.sample_groups import joined_batches

#: The mean cross-entropy of classes, from the first or the second label of each sequence on; or the
#: mean square, or the mean binary cross-entropy, of each element.
_Kind = Literal["classes", "classes but the first", "squares", "binary"]
_KINDS: tuple[_Kind, ...] = ("classes", "classes but the first", "squares", "binary")

# Losses of labels that differ by less than this share are alike: with any weights they have nearly
# the same mean.
_LEAST_SPREAD = 0.05


class _Candidate(NamedTuple):
    """The losses of labels if a loss is of some kind, of shape (labels that count,), and its mean.

    In half precision torch's mean is off by up to 1 %: there are two, of both precisions.
    """

    losses: Tensor
    means: tuple[float, ...]

    def is_mean(self, loss: Tensor) -> bool:
        precision = 5e-5 if loss.element_size() >= 4 else 2.5e-3
        return any(math.isclose(mean, loss.item(), rel_tol=precision) for mean in self.means)

    @property
    def tells(self) -> bool:
        """Whether the losses differ by enough to tell their mean from a weighted one."""
        losses = self.losses.double()
        return losses.numel() < 2 or bool(losses.std() > _LEAST_SPREAD * losses.mean())


_Candidates = Mapping[_Kind, _Candidate]


class LabelCount:
    """Counts the labels that a model's own loss is a mean over, as Hugging Face's models' are.

    In causal language models the first label of each sequence has no prediction, and labels that
    are no classes (−100, or another number) count nowhere. Which mean it is, is found in the first
    pass from the values of the losses, of each batch and of it together with the one before it.

    Parameters
    ----------
    forward : Rerun or None
        Runs the model on a batch once more. Where all labels have nearly the same loss, as in a new
        network, the value tells nothing; elsewhere among the parameters it does.
    is_single : bool, default False
        Whether there is one batch only, whose weight changes nothing.
    """

    def __init__(self, forward: Rerun | None, is_single: bool = False) -> None:
        self._forward, self._is_single = forward, is_single
        self._kind: _Kind | None = None
        # Whether the first loss is another: all batches have to be weighted in one unit.
        self._is_other = False
        self._are_samples = True
        self._verified = -1
        self._before: Batch | None = None

    def of(self, batch: Batch, outputs: Any, loss: Tensor) -> float | None:
        """Return the number of labels; None where the loss is no such mean.

        Raises
        ------
        ValueError
            It is no such mean although those of the batches before are; or that cannot be told.
        """
        labels, logits = part_named("labels", batch.targets), part_named("logits", outputs)
        if self._is_other or self._is_single or not isinstance(labels, Tensor) or not labels.ndim:
            return None
        found = _candidates(logits, labels, _KINDS if self._kind is None else (self._kind,))
        counts = {kind: each.losses.numel() for kind, each in found.items()}
        if 0 in counts.values() and (loss.isnan() or not loss):
            return 0.0  # a mean over no label at all
        if self._kind is not None and (batch.position <= self._verified or not loss.isfinite()):
            return float(counts[self._kind])
        kinds = self._kinds_of(batch, found, loss)
        self._verified = max(self._verified, batch.position)
        if not kinds:
            self._change_to_samples(batch)
            return None
        if len({counts[kind] for kind in kinds}) > 1:
            raise ValueError(
                "all labels have nearly the same loss, so that it cannot be told which of them the "
                "loss is a mean over: pass weight=, a function of outputs and batch that returns "
                "the number of labels that count"
            )
        if len(kinds) == 1:
            self._kind = kinds[0]
        self._are_samples &= counts[kinds[0]] == batch.size
        return float(counts[kinds[0]])

    def _change_to_samples(self, batch: Batch) -> None:
        """Go on with a loss that is verified as a mean over samples, if no other unit was used."""
        if self._verified > 0 and self._kind is not None and not self._are_samples:
            raise ValueError(
                f"the loss that the model computes for batch {batch.position} is not the mean over "
                "its labels, as those of the batches before it are: pass weight=, a function of "
                'outputs and batch that returns what the loss is divided by, or weight="samples" '
                "if it is a mean over samples, the first dimension of the labels"
            )
        self._is_other = True

    @torch.no_grad()
    def _kinds_of(self, batch: Batch, found: _Candidates, loss: Tensor) -> list[_Kind]:
        """Return the kinds of means that a batch's loss may be, of those found so far."""
        kinds = _fitting(found, loss)
        before, self._before = self._before, batch.copied() if kinds else None
        is_told = all(found[kind].tells for kind in kinds) and len(kinds) == 1
        # Half precision becomes float32 elsewhere.
        if kinds and (not is_told or loss.element_size() < 4):
            kinds = self._still_fitting(batch, kinds, (1, 2, 3))
        if kinds and before is not None:
            try:
                together = joined_batches(before, batch)
            except ValueError:  # of texts of other lengths
                return kinds
            fitting = self._still_fitting(together, kinds, (0, 1))
            if not fitting and all(
                self._still_fitting(each, kinds, (1,)) for each in (before, batch)
            ):
                raise ValueError(
                    f"the loss that the model computes for batches {before.position} and "
                    f"{batch.position} together is not the mean over their labels, although that "
                    "of each is: pass weight=, a function of outputs and batch that returns what "
                    "the loss is divided by (the sum of the labels' weights)"
                )
            return fitting
        return kinds

    def _still_fitting(
        self, batch: Batch, kinds: list[_Kind], places: tuple[int, ...]
    ) -> list[_Kind]:
        """Return the kinds that hold for a batch which is run in one place after another.

        Until they tell; all where it cannot be run.
        """
        for place in places:
            try:
                assert self._forward is not None
                outputs, targets = self._forward(batch, elsewhere=place)
                loss = part_named("loss", outputs)
                if not math.isfinite(loss.item()):
                    return kinds
                labels, logits = part_named("labels", targets), part_named("logits", outputs)
                found = _candidates(logits, labels, kinds)
            except Exception:  # as of a parameter that must be positive
                return kinds
            kinds = _fitting(found, loss)
            counts = {found[kind].losses.numel() for kind in kinds}
            is_exact = loss.element_size() >= 4
            if is_exact and len(counts) < 2 and all(found[kind].tells for kind in kinds):
                return kinds
        return kinds


def _fitting(found: _Candidates, loss: Tensor) -> list[_Kind]:
    return [kind for kind, each in found.items() if each.is_mean(loss)]


@torch.no_grad()
def _candidates(logits: Any, labels: Tensor, kinds: Iterable[_Kind]) -> dict[_Kind, _Candidate]:
    """Return what the losses of labels are for each kind that their shapes allow."""
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        return {}
    are_whole = not (labels.is_floating_point() or labels.dtype == torch.bool)
    are_classes = are_whole and logits.shape[:-1] == labels.shape
    are_elements = logits.squeeze().shape == labels.squeeze().shape
    found: dict[_Kind, _Candidate] = {}
    for kind in kinds:
        if kind in ("squares", "binary"):
            if are_elements:
                found[kind] = _of_elements(logits, labels, kind)
        elif are_classes and kind == "classes":
            found[kind] = _of_classes(logits, labels)
        elif are_classes and labels.ndim > 1:
            found[kind] = _of_classes(logits[..., :-1, :], labels[..., 1:])
    return found


def _of_classes(logits: Tensor, labels: Tensor) -> _Candidate:
    # What stands for no label is −100 as a rule, and −1, 255 or another number in some models.
    are_labels = (labels >= 0) & (labels < logits.shape[-1])
    known = torch.where(are_labels, labels.long(), IGNORED).flatten()
    return _candidate(F.cross_entropy, logits.flatten(0, -2), known, are_labels.flatten())


def _of_elements(logits: Tensor, labels: Tensor, kind: _Kind) -> _Candidate:
    loss_fn = F.mse_loss if kind == "squares" else F.binary_cross_entropy_with_logits
    outputs = logits.squeeze()
    targets = labels.squeeze().to(outputs)
    return _candidate(loss_fn, outputs, targets, torch.ones_like(targets, dtype=torch.bool))


def _candidate(
    loss_fn: Callable[..., Tensor], outputs: Tensor, targets: Tensor, count: Tensor
) -> _Candidate:
    if outputs.element_size() >= 4:
        losses = loss_fn(outputs, targets, reduction="none")[count]
        return _Candidate(losses, (losses.double().mean().item(),))
    # Some models compute their loss in half precision, and some do not.
    exact = targets.float() if targets.is_floating_point() else targets
    losses = loss_fn(outputs.float(), exact, reduction="none")[count]
    coarse = loss_fn(outputs, targets, reduction="mean").item()
    return _Candidate(losses, (losses.double().mean().item(), coarse))
