"""Compare a loss with those of the parts that it should be the mean, or the sum, of.

:mod:`~steppe.landscape.objective.loss_check` computes the losses.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

#: What to do where a loss is divided by something unknown.
DIVIDED_BY = (
    "pass weight=, a function of outputs and targets that returns what the loss is divided by (the "
    "number of tokens, the sum of the samples' weights)"
)

# As often a loss is computed again, before it is said to draw no random numbers: noise that is
# added with a probability may stay away a few times.
_REPETITIONS = 8


class LossComparison(NamedTuple):
    """The loss of a whole and of its two parts, of which the first has a share of the samples."""

    whole: float
    parts: tuple[float, float]
    share: float
    dtype: torch.dtype
    is_sum: bool

    @property
    def is_finite(self) -> bool:
        """Whether all three losses are."""
        return all(math.isfinite(loss) for loss in (self.whole, *self.parts))

    @property
    def is_right(self) -> bool:
        """Whether the loss is the mean, or the sum, of its parts'."""
        return abs(self.whole - self._expected) <= self._tolerance

    @property
    def tells(self) -> bool:
        """Whether the parts' losses differ by enough to tell one mean from another."""
        return abs(self.parts[0] - self.parts[1]) > 10 * self._tolerance

    @property
    def tells_well(self) -> bool:
        """Whether they differ by enough to tell means whose weights differ by a few percent."""
        return abs(self.parts[0] - self.parts[1]) > 300 * self._tolerance

    def is_random(self, again: Callable[[int], float]) -> bool:
        """Whether the loss differs when it is computed again: it draws random numbers."""
        return any(
            abs(self.whole - again(time)) > 1e-3 * self._tolerance
            for time in range(1, _REPETITIONS + 1)
        )

    def is_cancelled(self, losses: Sequence[float], together: float) -> bool:
        """Whether the difference is rounding of samples' losses, which cancel each other.

        ``losses`` are those of single samples. Of a loss that is divided by what one sample does
        not have, as a variance, they are infinite or very large, and not what ``together`` is the
        mean, or the sum, of.
        """
        rounding = self._relative * max(map(abs, losses))
        expected = sum(losses) if self.is_sum else sum(losses) / len(losses)
        is_mean = math.isfinite(rounding) and abs(expected - together) <= rounding
        return is_mean and abs(self.whole - self._expected) <= rounding

    def said(self, where: str) -> str:
        """Say what is wrong; ``where`` has a place for the loss of the whole."""
        first, second = self.parts
        is_total = abs(self.whole - sum(self.parts)) <= self._tolerance
        # Where one part has none, sum and mean over what counts are the same.
        is_told = min(abs(first), abs(second)) > self._tolerance
        advice = 'weight="sum" adds the batches up' if is_total and is_told else DIVIDED_BY
        name = "sum" if self.is_sum else "mean"
        return (
            f"the loss is no {name} over samples: {where.format(self.whole)} {first:.6g} and "
            f"{second:.6g}, whose {name} is {self._expected:.6g}. The "
            f'result would depend on how samples are batched: {advice}; weight="samples" takes it '
            "for a mean over samples, the first dimension of the targets, all the same"
        )

    @property
    def _expected(self) -> float:
        first, second = self.parts
        return first + second if self.is_sum else self.share * first + (1 - self.share) * second

    @property
    def _relative(self) -> float:
        return max(1e-4, min(0.05, 100 * torch.finfo(self.dtype).eps))

    @property
    def _tolerance(self) -> float:
        known = (abs(value) for value in (self.whole, *self.parts) if math.isfinite(value))
        return self._relative * max(known)
