"""Verify that a loss is a mean, or a sum, over samples, before batches are weighted by these.

:mod:`~steppe.landscape.objective.loss_weight` asks where the kind of loss does not tell.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from steppe.landscape.objective.batches import Batch, unknown_size
from steppe.landscape.objective.label_count import part_named
from steppe.landscape.objective.sample_groups import cut, part_of

# Outputs of a batch that are kept for the next one: 64 MB in float32. A language model's logits may
# be of any size.
_MOST_KEPT = 2**24
#: What to do where a loss is divided by something unknown.
DIVIDED_BY = (
    "pass weight=, a function of outputs and targets that returns what the loss is divided by (the "
    "number of tokens, the sum of the samples' weights)"
)


class _Verified(NamedTuple):
    """A batch that was verified, and what the loss was computed of."""

    batch: Batch
    outputs: Tensor
    targets: Tensor
    loss: float


class LossCheck:
    """Compares a batch's loss with those of its halves, and two batches' with that of both.

    Parameters
    ----------
    loss_fn : callable or None
        The loss; None takes that of the model's outputs.
    forward : callable or None
        Runs the model on a batch, for losses that the model computes. Without it these are not
        verified.
    is_sum : bool
        Whether it is taken for a sum.
    is_single : bool
        Whether there is one batch only, which is then not verified.
    """

    def __init__(
        self,
        loss_fn: Callable[[Any, Any], Tensor] | None,
        forward: Callable[[Batch], Any] | None,
        is_sum: bool,
        is_single: bool,
    ) -> None:
        self._loss_fn, self._forward, self.is_sum = loss_fn, forward, is_sum
        self._is_own = False
        self._suspect = ""
        self._before: _Verified | None = None
        self._verified = 0 if is_single else -1

    def verify(self, batch: Batch, outputs: Any, loss: Tensor, is_own: bool) -> None:
        """Refuse a loss that isn't what it is taken for, once a second batch has to be weighted.

        Raises
        ------
        ValueError
            It isn't; or it cannot be told how many samples there are.
        """
        self._is_own = is_own
        # Parts of a batch, and later passes, have been verified with it.
        if batch.position <= self._verified or (self._is_own and self._forward is None):
            return
        self._verified = batch.position
        if not self._suspect:
            found = self._compared_with_halves(batch, outputs, loss)
            is_unknown = found is None and batch.size_from != "all" and not self.is_sum
            self._suspect = unknown_size(batch) if is_unknown else found or ""
        if not self._suspect:
            self._suspect = self._compared_with_another(batch, outputs, loss)
        if self._suspect and batch.position > 0:
            raise ValueError(self._suspect)

    def believe(self, batch: Batch) -> None:
        """Take the loss for a mean over samples unseen, whose number has to be known.

        Raises
        ------
        ValueError
            It is that of one tensor among several.
        """
        if batch.size_from == "first":
            self._suspect = self._suspect or unknown_size(batch)
        if self._suspect and batch.position > 0:
            raise ValueError(self._suspect)

    @torch.no_grad()
    def _compared_with_halves(self, batch: Batch, outputs: Any, loss: Tensor) -> str | None:
        """Return what is wrong where it isn't the mean (or sum) of its halves', or nothing.

        None where it cannot be verified in this way.
        """
        size, half = batch.size, batch.size // 2
        if half == 0 or not math.isfinite(loss.item()):
            return None
        try:
            loss_of, whole = self._loss_of_parts(batch, outputs, loss.item())
            parts = loss_of(0, half), loss_of(half, size)
        except Exception:
            # A loss that cannot be computed of half a batch.
            return None
        if {*parts} == {whole}:
            return None
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
                    f'{DIVIDED_BY}, or weight="samples" if it is a mean over samples all the same'
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
    ) -> tuple[Callable[[int, int], float], float]:
        """Return the loss as a function of where a part of the samples begins and ends, and of all.

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
            return of_outputs, whole
        half = batch.size // 2
        try:
            sees_parts = {of_outputs(0, half), of_outputs(half, batch.size)} != {whole}
        except Exception:
            sees_parts = False
        if sees_parts:
            return of_outputs, whole
        # In train() mode parts are run in eval(), where the whole has another loss.
        return of_inputs, of_inputs(0, batch.size)

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
    advice = 'weight="sum" adds the batches up' if abs(whole - total) <= tolerance else DIVIDED_BY
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
