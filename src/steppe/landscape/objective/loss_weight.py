"""What a batch's loss has been divided by: batches are weighted by it, so that means are right.

A loss may be a mean over samples, over the elements of outputs, or over the targets that are not
ignored. :class:`~steppe.landscape.objective.objective.Objective` weights batches by it.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steppe.landscape.objective.batches import Batch
from steppe.landscape.objective.sample_groups import cut, part_of

#: What a batch's loss is divided by; see :func:`steppe.landscape.hessian`.
Weight = Literal["samples", "sum"] | Callable[[Any, Any], float]

#: ``loss_fn(outputs, targets)``, or for mappings ``loss_fn(outputs, batch)``: a scalar.
LossFunction = Callable[[Any, Any], Tensor]

# Losses that divide by the weights of the targets that are not ignored.
_OF_CLASSES: tuple[Any, ...] = (F.cross_entropy, F.nll_loss, nn.CrossEntropyLoss, nn.NLLLoss)
# Losses that divide by the number of elements.
_OF_ELEMENTS: tuple[Any, ...] = (
    F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss, F.binary_cross_entropy,
    F.binary_cross_entropy_with_logits, F.kl_div, F.poisson_nll_loss, F.soft_margin_loss,
    nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCELoss, nn.BCEWithLogitsLoss,
    nn.KLDivLoss, nn.PoissonNLLLoss, nn.SoftMarginLoss,
)  # fmt: skip

_IGNORED = -100
# Outputs of a batch that are kept for the next one: 64 MB in float32. A language model's logits may
# be of any size.
_MOST_KEPT = 2**24
_DIVIDED_BY = (
    "pass weight=, a function of outputs and targets that returns what the loss is divided by (the "
    "number of tokens, the sum of the samples' weights)"
)


class _Verified(NamedTuple):
    """A batch that was verified, and what the loss was computed of."""

    batch: Batch
    outputs: Tensor
    targets: Tensor
    loss: float


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
    forward : callable, optional
        Runs the model on a batch, for losses that the model computes. Without it these are not
        verified.
    is_single : bool, default False
        Whether there is one batch only, so that weights don't matter. It is then not verified.

    Raises
    ------
    ValueError
        ``given`` is neither of these.

    Examples
    --------
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
        forward: Callable[[Batch], Any] | None = None,
        is_single: bool = False,
    ) -> None:
        if given is not None and given not in ("samples", "sum") and not callable(given):
            raise ValueError(
                f'weight={given!r} is not one of "samples", "sum", or a function of outputs and '
                "targets that returns what the loss is divided by"
            )
        self._loss_fn, self._options = loss_fn, _options(loss_fn)
        says_sum = given is None and self._options.get("reduction") == "sum"
        self._given: Weight | None = "sum" if says_sum else given
        # A class of one's own may inherit ``reduction`` and divide by something all the same.
        self._is_unverified_sum = says_sum and "kind" not in self._options
        self._forward, self._is_own = forward, False
        self._first_label: int | None = None
        self._suspect = ""
        self._before: _Verified | None = None
        self._verified = 0 if is_single else -1

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
        if self._given == "sum":
            if self._is_unverified_sum:
                self._verify(batch, outputs, loss)
            return 1.0
        if self._given == "samples":
            return float(batch.size)
        if callable(self._given):
            return _checked(float(self._given(outputs, batch.targets)))
        found = self._known(batch, outputs, loss)
        if found is None:
            self._verify(batch, outputs, loss)
            return float(batch.size)
        return found

    def _known(self, batch: Batch, outputs: Any, loss: Tensor) -> float | None:
        """Return the weight that the kind of loss tells, or None."""
        kind = self._options.get("kind")
        if self._is_the_models_own(outputs, loss):
            return self._of_labels(batch, outputs, loss)
        if not isinstance(outputs, Tensor) or not isinstance(batch.targets, Tensor):
            return None
        if kind == "classes":
            return _of_classes(batch.targets, self._options)
        if kind == "elements":
            if self._options.get("reduction") == "batchmean":
                return float(len(outputs))
            # Of shapes that broadcast, samples may be compared with each other.
            return float(outputs.numel()) if outputs.shape == batch.targets.shape else None
        return None

    def _is_the_models_own(self, outputs: Any, loss: Tensor) -> bool:
        """Whether it is the loss that the model has computed, also if ``loss_fn`` returns that."""
        own = part_named("loss", outputs)
        is_same = isinstance(own, Tensor) and own.data_ptr() == loss.data_ptr()
        self._is_own = self._loss_fn is None or is_same
        return self._is_own

    def _of_labels(self, batch: Batch, outputs: Any, loss: Tensor) -> float | None:
        """Return the number of labels that a model's own loss is a mean over; None if unknown.

        In causal language models the first label of each sequence has no prediction. Which of both
        counts holds is found from the value of the loss.
        """
        labels = part_named("labels", batch.targets)
        if not isinstance(labels, Tensor) or not labels.ndim:
            return None
        if labels.is_floating_point():
            return float(labels.numel())
        begin = self._first_label
        if begin is None:
            logits = part_named("logits", outputs)
            begin = self._first_label = _first_label(logits, labels, loss)
        if begin is None:
            # A mean over no label at all is NaN: it weighs nothing, and tells nothing.
            later = labels[..., 1:] if labels.ndim > 1 else labels
            return None if (later != _IGNORED).any() or not loss.isnan() else 0.0
        counted = labels[..., begin:] if begin else labels
        return float((counted != _IGNORED).sum())

    def _verify(self, batch: Batch, outputs: Any, loss: Tensor) -> None:
        """Refuse a loss that isn't what it is taken for, once a second batch has to be weighted."""
        # Parts of a batch, and later passes, have been verified with it.
        if batch.position <= self._verified or (self._is_own and self._forward is None):
            return
        self._verified = batch.position
        if not self._suspect:
            self._suspect = self._compared_with_halves(batch, outputs, loss)
        if not self._suspect:
            self._suspect = self._compared_with_another(batch, outputs, loss)
        if self._suspect and batch.position > 0:
            raise ValueError(self._suspect)

    @torch.no_grad()
    def _compared_with_halves(self, batch: Batch, outputs: Any, loss: Tensor) -> str:
        """Return what is wrong where it isn't the mean (or sum) of its halves', or nothing."""
        size, half = batch.size, batch.size // 2
        whole = loss.item()
        if half == 0 or not math.isfinite(whole):
            return ""
        try:
            loss_of = self._loss_of_parts(batch, outputs, whole)
            parts = loss_of(0, half), loss_of(half, size)
        except Exception:
            # A loss that cannot be computed of half a batch cannot be verified in this way.
            return ""
        where = f"of batch {batch.position} it is {{:.6g}}, and of its halves"
        whole_again = partial(loss_of, 0, size)
        return _difference(
            where, whole, whole_again, parts, half / size, loss.dtype, is_sum=self.is_sum
        )

    @torch.no_grad()
    def _compared_with_another(self, batch: Batch, outputs: Any, loss: Tensor) -> str:
        """Compare a batch with the one before it: halves may be alike where batches are not."""
        if not (isinstance(outputs, Tensor) and isinstance(batch.targets, Tensor)) or self._is_own:
            return ""
        if outputs.numel() > _MOST_KEPT:
            return ""
        # Copies, as a loader may fill the same memory with the next batch.
        now = _Verified(batch, outputs.detach().clone(), batch.targets.clone(), loss.item())
        try:
            again = self._loss(now.outputs, now.targets.clone())
        except Exception:
            # A loss that differentiates its outputs cannot be computed of a copy.
            return ""
        if again != now.loss:
            # The loss draws random numbers, or the model has changed the targets in place.
            return ""
        before, self._before = self._before, now
        if before is None:
            return ""
        both_outputs, both_targets = (before.outputs, now.outputs), (before.targets, now.targets)
        places = f"batches {before.batch.position} and {batch.position}"
        for what, values in (("outputs", both_outputs), ("targets", both_targets)):
            if not self.is_sum and (shapes := _different_shapes(*values)):
                return (
                    f"the {what} of {places} have shapes {shapes}, and of samples that differ in "
                    "more than their number it cannot be told what the loss is a mean over: "
                    f'{_DIVIDED_BY}, or weight="samples" if it is a mean over samples all the same'
                )
        try:
            both = partial(self._loss, torch.cat(both_outputs), torch.cat(both_targets))
            whole = both()
        except Exception:
            return ""
        if not math.isfinite(whole):
            return ""
        where = f"of {places} together it is {{:.6g}}, and of each"
        share = before.batch.size / (before.batch.size + batch.size)
        parts = before.loss, now.loss
        return _difference(where, whole, both, parts, share, loss.dtype, is_sum=self.is_sum)

    def _loss_of_parts(
        self, batch: Batch, outputs: Any, whole: float
    ) -> Callable[[int, int], float]:
        """Return the loss as a function of where a part of the batch's samples begins and ends.

        Outputs are cut where that is possible. It is not where the model returns its loss, or
        flattens samples: the model is then run on the part.
        """

        def of_outputs(begin: int, end: int) -> float:
            part = part_of(batch, begin, end).copied()
            return self._loss(cut(outputs, batch.size, begin, end), part.targets)

        def of_inputs(begin: int, end: int) -> float:
            assert self._forward is not None
            part = part_of(batch, begin, end).copied()
            return self._loss(self._forward(part), part.targets)

        if self._forward is None:
            return of_outputs
        half = batch.size // 2
        try:
            sees_parts = {of_outputs(0, half), of_outputs(half, batch.size)} != {whole}
        except Exception:
            sees_parts = False
        return of_outputs if sees_parts else of_inputs

    def _loss(self, outputs: Any, targets: Any) -> float:
        if self._is_own:
            return float(part_named("loss", outputs))
        assert self._loss_fn is not None
        return float(self._loss_fn(outputs, targets))


def _difference(
    where: str,
    whole: float,
    whole_again: Callable[[], float],
    parts: tuple[float, float],
    share: float,
    dtype: torch.dtype,
    *,
    is_sum: bool,
) -> str:
    """Say what is wrong where a loss isn't the mean (or sum) of its parts', or nothing.

    ``share`` is that of the first part's samples.
    """
    first, second = parts
    mean, total = share * first + (1 - share) * second, first + second
    expected = total if is_sum else mean
    largest = max(abs(value) for value in (whole, first, second) if math.isfinite(value))
    tolerance = max(1e-4, min(0.05, 100 * torch.finfo(dtype).eps)) * largest
    if abs(whole - expected) <= tolerance:
        return ""
    if abs(whole - whole_again()) > 1e-3 * tolerance:
        # The loss itself draws random numbers.
        return ""
    advice = 'weight="sum" adds the batches up' if abs(whole - total) <= tolerance else _DIVIDED_BY
    name = "sum" if is_sum else "mean"
    return (
        f"the loss is no {name} over samples: {where.format(whole)} {first:.6g} and "
        f"{second:.6g}, whose {name} is {expected:.6g}. The "
        f'result would depend on how samples are batched: {advice}; weight="samples" takes it '
        "for a mean over samples all the same"
    )


def _different_shapes(first: Any, second: Any) -> str:
    """Return the shapes of two tensors that differ in more than the first dimension, or nothing."""
    both = (first, second)
    if not all(isinstance(each, Tensor) and each.ndim for each in both):
        return ""
    if first.shape[1:] == second.shape[1:]:
        return ""
    return " and ".join(str(tuple(each.shape)) for each in both)


def _options(loss_fn: Any) -> dict[str, Any]:
    """Return the kind of one of torch's losses and its options, or nothing."""
    if isinstance(loss_fn, partial):
        return _options(loss_fn.func) | (loss_fn.keywords if not loss_fn.args else {})
    kinds = {"classes": _OF_CLASSES, "elements": _OF_ELEMENTS}
    for kind, losses in kinds.items():
        if loss_fn in losses or type(loss_fn) in losses:
            own = vars(loss_fn) | getattr(loss_fn, "_buffers", {})
            names = ("reduction", "ignore_index", "weight")
            return {"kind": kind} | {name: own[name] for name in names if name in own}
    reduction = getattr(loss_fn, "reduction", None)
    return {"reduction": reduction} if reduction == "sum" else {}


def _of_classes(targets: Tensor, options: Mapping[str, Any]) -> float:
    if targets.is_floating_point():
        # Probabilities: the mean is over targets, whose classes stand in dimension 1.
        return float(targets.numel() / targets.shape[1 if targets.ndim > 1 else 0])
    counted = targets[targets != options.get("ignore_index", _IGNORED)]
    weight = options.get("weight")
    return float(counted.numel() if weight is None else weight.double()[counted].sum())


def part_named(name: str, value: Any) -> Any:
    """Return a mapping's entry or an object's attribute, or None."""
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)


def _first_label(logits: Any, labels: Tensor, loss: Tensor) -> int | None:
    """Return the position of the first label that a loss, a cross-entropy, is a mean over.

    None where the loss is something else, or the labels don't tell.
    """
    if not isinstance(logits, Tensor) or logits.shape[:-1] != labels.shape:
        return None
    with torch.no_grad():
        for begin in (0, 1)[: labels.ndim]:
            predicted = logits if begin == 0 else logits[..., :-1, :]
            counted = labels if begin == 0 else labels[..., 1:]
            value = F.cross_entropy(predicted.flatten(0, -2).float(), counted.flatten())
            if math.isclose(value.item(), loss.item(), rel_tol=1e-2 * loss.element_size() ** -2):
                return begin
    return None


def _checked(weight: float) -> float:
    if not (math.isfinite(weight) and weight >= 0):
        raise ValueError(f"weight must return a finite number of at least 0, got {weight}")
    return weight
