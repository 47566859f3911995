"""Verify that a loss is a mean, or a sum, over samples, before batches are weighted by these.

:mod:`~steppe.landscape.objective.loss_weight` asks where the kind of loss does not tell.
"""

import math
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from steppe.landscape.objective.batches import (
    Batch,
    labels_of,
    map_tensors,
    part_named,
    tensors_of,
    unknown_size,
)
from steppe.landscape.objective.loss_comparison import DIVIDED_BY, LossComparison
from steppe.landscape.objective.rerun import RerunLoss
from steppe.landscape.objective.sample_groups import cut, joined_batches, part_of

# Outputs of a batch that are kept for the next one: 64 MB in float32. A language model's logits may
# be of any size.
_MOST_KEPT = 2**24
_UNVERIFIED = (
    "it cannot be verified that the loss is a mean over samples, as it cannot be computed of parts "
    f'of a batch, nor of two batches together: {DIVIDED_BY}, or weight="samples" if it is a mean '
    "over samples, the first dimension of the targets"
)


class _Verified(NamedTuple):
    """A batch that was verified, what the loss was computed of, and the loss."""

    batch: Batch
    # None where the model is run anew.
    outputs: Tensor | None
    shapes: list[tuple[str, torch.Size]]
    loss: float


class LossCheck:
    """Compares a batch's loss with those of its halves, and two batches' with that of both.

    Parameters
    ----------
    loss : RerunLoss
        Computes losses. Where it cannot run the model, those that the model computes are not
        verified.
    is_sum : bool
        Whether it is taken for a sum.
    is_single : bool
        Whether there is one batch only, which is then not verified.
    """

    def __init__(self, loss: RerunLoss, is_sum: bool, is_single: bool) -> None:
        self._loss, self.is_sum = loss, is_sum
        # Whether the parts of a batch had losses that differ.
        self._is_told = False
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
        self._loss.is_own = is_own
        # Parts of a batch, and later passes, have been verified with it.
        if batch.position <= self._verified or (is_own and not self._loss.can_run):
            # In a second pass there is nothing left to compare.
            self._before = self._before if batch.position else None
            return
        self._verified = batch.position
        self._suspect = self._suspect or self._examined(batch, outputs, loss)
        if self._suspect and batch.position > 0:
            raise ValueError(self._suspect)

    def _examined(self, batch: Batch, outputs: Any, loss: Tensor) -> str:
        """Return what is wrong with a loss, or nothing."""
        if not math.isfinite(loss.item()):
            return ""
        before, self._is_told, self._loss.has_run = self._before, False, False
        with torch.no_grad():
            by_halves = self._compared_with_halves(batch, outputs, loss)
            if by_halves is None and batch.size_from != "all" and not self.is_sum:
                return unknown_size(batch)
            found = by_halves or self._compared_with_another(batch, outputs, loss)
            if found == "" and self._loss.has_run and not self._is_told:
                found = self._compared_elsewhere(batch, before)
        return _UNVERIFIED if found is None and by_halves is None else found or ""

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

    def _compared_with_halves(self, batch: Batch, outputs: Any, loss: Tensor) -> str | None:
        """Return what is wrong where it isn't the mean (or sum) of its halves', or nothing.

        None where it cannot be verified in this way.
        """
        if batch.size < 2:
            return None
        try:
            loss_of = self._loss_of_parts(batch, outputs)
            found = self._of_halves(batch, loss_of)
        except Exception:
            # A loss that cannot be computed of half a batch.
            return None
        if {*found.parts} == {found.whole}:
            return None
        where = f"of batch {batch.position} it is {{:.6g}}, and of its halves"
        said = self._judged(where, found, partial(loss_of, 0, batch.size), loss_of, batch.size)
        if said:
            # A loss may read what the model has left of its last pass: of parts of the outputs
            # alone it is another one.
            with suppress(Exception):
                seen = self._of_halves(batch, partial(self._loss.of_part, batch))
                if seen.tells and seen.is_right:
                    return ""
        return said

    def _of_halves(self, batch: Batch, loss_of: Callable[..., float]) -> LossComparison:
        size, half = batch.size, batch.size // 2
        whole, parts = loss_of(0, size), (loss_of(0, half), loss_of(half, size))
        return LossComparison(whole, parts, half / size, self._loss.dtype, self.is_sum)

    def _judged(
        self,
        where: str,
        found: LossComparison,
        again: Callable[[int], float],
        loss_of: Callable[..., float],
        size: int,
    ) -> str:
        """Return what is wrong, unless that is noise of the loss's own, or rounding."""
        if found.is_right:
            # In half precision a difference of some percent would pass as rounding.
            self._is_told |= found.tells_well and found.dtype.itemsize >= 4
            return ""
        if found.is_random(again):
            return ""
        with suppress(Exception):
            count = min(size, 8)
            losses = [loss_of(i, i + 1) for i in range(count)]
            if found.is_cancelled(losses, loss_of(0, count)):
                return ""
        return found.said(where)

    def _loss_of_parts(self, batch: Batch, outputs: Any) -> Callable[..., float]:
        """Return the loss as a function of where a part of the samples begins and ends.

        Outputs are cut where that is possible. It is not where the model returns its loss, or
        flattens samples: the model is then run on the part.
        """

        def of_outputs(values: Any, begin: int, end: int, noise: int = 0) -> float:
            part = part_of(batch, begin, end).copied()
            return self._loss.of_outputs(cut(values, batch.size, begin, end), part.targets)

        half = batch.size // 2
        # Where outputs are nearly alike, as those of a new network, losses of all parts are.
        for values in (map_tensors(outputs, _spread), outputs):
            loss_of = partial(of_outputs, values)
            try:
                whole, *parts = loss_of(0, batch.size), loss_of(0, half), loss_of(half, batch.size)
            except Exception:
                continue
            if {*parts} != {whole} and math.isfinite(whole):
                return loss_of
        # In train() mode parts are run in eval(), where the whole has another loss.
        return (
            partial(self._loss.of_part, batch)
            if self._loss.can_run
            else partial(of_outputs, outputs)
        )

    def _compared_with_another(self, batch: Batch, outputs: Any, loss: Tensor) -> str | None:
        """Compare a batch with the one before it: halves may be alike where batches are not.

        None where it cannot be verified in this way.
        """
        try:
            now = self._kept(batch, outputs)
        except Exception:
            self._before = None
            return None if batch.position > 0 else ""
        before, self._before = self._before, now
        if before is None:
            return ""
        places = f"batches {before.batch.position} and {batch.position}"
        if not self.is_sum and (shapes := _different_shapes(places, before.shapes, now.shapes)):
            return shapes
        where = f"of {places} together it is {{:.6g}}, and of each"
        try:
            found, both = self._of_both(before, now)
            if not math.isfinite(found.whole):
                return ""
            loss_of = self._loss_of_parts(batch, outputs)
            said = self._judged(where, found, both, loss_of, batch.size)
            if said and now.outputs is not None and self._loss.can_run:
                # As of halves.
                pair = self._by_inputs(before), self._by_inputs(now)
                again, _ = self._of_both(*pair)
                said = "" if again.tells and again.is_right else said
        except Exception:
            return None
        return said

    def _kept(self, batch: Batch, outputs: Any) -> _Verified:
        """Return copies, as a loader may fill the same memory with the next batch."""
        own, shapes = batch.copied(), _shapes(batch, outputs)
        if (
            isinstance(outputs, Tensor)
            and isinstance(batch.targets, Tensor)
            and not self._loss.is_own
            and outputs.ndim
            and len(outputs) == batch.size
            and outputs.numel() <= _MOST_KEPT
        ):
            for values in (_spread(outputs), outputs.detach().clone()):
                # A loss that differentiates its outputs cannot be computed of a copy.
                with suppress(Exception):
                    loss = self._loss.of_outputs(values, own.targets.clone())
                    return _Verified(own, values, shapes, loss)
        return self._by_inputs(_Verified(own, None, shapes, 0.0))

    def _by_inputs(self, kept: _Verified) -> _Verified:
        """Return a batch with the loss that the model has on its inputs, run anew."""
        return kept._replace(outputs=None, loss=self._loss.of_inputs(kept.batch))

    def _of_both(
        self, one: _Verified, other: _Verified
    ) -> tuple[LossComparison, Callable[[int], float]]:
        """Return two batches together beside each, and their loss as a function of the noise."""
        joined = joined_batches(one.batch, other.batch)

        def of_outputs(noise: int = 0) -> float:
            outputs = torch.cat([one.outputs, other.outputs])  # type: ignore[list-item]
            return self._loss.of_outputs(outputs, joined.copied().targets)

        runs_anew = one.outputs is None or other.outputs is None
        both = partial(self._loss.of_inputs, joined) if runs_anew else of_outputs
        share = one.batch.size / joined.size
        parts = one.loss, other.loss
        whole = both()
        return LossComparison(whole, parts, share, self._loss.dtype, self.is_sum), both

    def _compared_elsewhere(self, batch: Batch, before: _Verified | None) -> str:
        """Compare once more with other parameters: in a new network the losses of all are alike.

        Nothing where that cannot be done.
        """
        where = "with other parameters, where outputs differ, of"
        loss_of = partial(self._loss.of_part, batch)
        said = ""
        with self._loss.elsewhere(), suppress(Exception):
            if batch.size > 1:
                found = self._of_halves(batch, loss_of)
                halves = f"{where} batch {batch.position} it is {{:.6g}}, and of its halves"
                whole = partial(loss_of, 0, batch.size)
                if found.is_finite:
                    said = self._judged(halves, found, whole, loss_of, batch.size)
            if before is not None and not said:
                pair = self._by_inputs(before), self._by_inputs(before._replace(batch=batch))
                both, again = self._of_both(*pair)
                together = f"{where} batches {before.batch.position} and {batch.position} together"
                each = f"{together} it is {{:.6g}}, and of each"
                if both.is_finite:
                    said = self._judged(each, both, again, loss_of, batch.size)
        return said


def _spread(values: Tensor) -> Tensor:
    """Return a copy of outputs, moved apart at random, within the signs or shares that they are."""
    if not values.is_floating_point() or values.numel() > _MOST_KEPT:
        return values.detach().clone()
    # In half precision the loss of a part would be too coarse to compare.
    values = values.float() if values.element_size() < 4 else values
    own = torch.Generator("cpu").manual_seed(0)
    drawn = torch.rand(values.shape, generator=own, dtype=torch.float64, device="cpu")
    random = drawn.to(values)
    low, high = (float(each) for each in values.detach().aminmax()) if values.numel() else (0, 0)
    if low >= 0 and high <= 1:
        return (values.detach() + random) / 2
    if low >= 0 or high <= 0:
        return values.detach() * (0.5 + random)
    return values.detach() + max(1.0, float(values.detach().std())) * (2 * random - 1)


def _shapes(batch: Batch, outputs: Any) -> list[tuple[str, torch.Size]]:
    """Return the shapes of what the loss may be a mean over: outputs and targets by sample."""
    logits = part_named("logits", outputs)
    targets = labels_of(batch.targets)
    found = {"outputs": outputs if logits is None else logits, "targets": targets}
    return [
        (what, each.shape)
        for what, values in found.items()
        for each in tensors_of(values)
        if each.ndim and len(each) == batch.size
    ]


def _different_shapes(
    places: str, before: list[tuple[str, torch.Size]], now: list[tuple[str, torch.Size]]
) -> str:
    """Say which shapes differ in more than the first dimension, or nothing."""
    if [what for what, _ in before] != [what for what, _ in now]:
        return ""
    for (what, one), (_, other) in zip(before, now, strict=True):
        if one[1:] != other[1:]:
            return (
                f"the {what} of {places} have shapes {tuple(one)} and {tuple(other)}, and of "
                "samples that differ in more than their number it cannot be told what the loss is "
                f'a mean over: {DIVIDED_BY}, or weight="samples" if it is a mean over samples, '
                "the first dimension of the targets, all the same"
            )
    return ""
