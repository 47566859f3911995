"""Average rows over batches, weighted, in float64, over all processes.

Losses, gradients and products of all instruments are such averages.
"""

from collections.abc import Callable

import torch
from torch import Tensor

# Elements of each row that are added at a time.
_PIECE = 1 << 18


class SampleMean:
    """The mean of per-batch rows, each batch weighted by what its rows are a mean over.

    The first batch's rows are kept in their own number format until a second batch comes: data in
    one batch, as full-batch curvature often is, then needs no float64 copy.

    Parameters
    ----------
    shape : (int, int)
        Number of rows, and their length.
    device : torch.device
        Where the rows lie.
    sum_over_ranks : callable, optional
        Sums a tensor over the processes of a distributed run. Default: there is one process.
    is_sum : bool, default False
        Add the weighted rows up, and do not divide by the weights.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        device: torch.device,
        sum_over_ranks: Callable[[Tensor], Tensor] | None = None,
        is_sum: bool = False,
    ) -> None:
        self._shape, self._device, self._sum_over_ranks = shape, device, sum_over_ranks
        self._is_sum = is_sum
        self._sum: Tensor | None = None
        # Not 0 as long as _sum is the first batch's mean and not yet a weighted sum.
        self._first_weight = 0.0
        self._losses = 0.0
        self._weight = 0.0
        self._samples = 0

    def add(self, rows: Tensor, weight: float, samples: int, loss: float = 0.0) -> None:
        """Add a batch's rows and its loss.

        Parameters
        ----------
        rows : Tensor
            Of the mean's shape.
        weight : float
            The batch's weight; what has weight 0 may be NaN.
        samples : int
            The batch's number of samples.
        loss : float, default 0
            Its loss.
        """
        self._samples += samples
        if weight == 0.0:
            return
        self._losses += loss * weight
        self._weight += weight
        if self._sum is None:
            self._sum, self._first_weight = rows, weight
            return
        if self._first_weight:
            self._sum, self._first_weight = self._sum.double().mul_(self._first_weight), 0.0
        # In pieces: add_ converts its whole argument to float64 first, as much memory again.
        totals, pieces = (torch.split(whole, _PIECE, dim=1) for whole in (self._sum, rows))
        for total, piece in zip(totals, pieces, strict=True):
            total.add_(piece, alpha=weight)

    def result(self, dtype: torch.dtype) -> tuple[Tensor, float, int, float]:
        """Return the mean rows in a number format, the mean loss, and samples and weight in all.

        Raises
        ------
        ValueError
            There is no sample, or all weights are 0.
        """
        total = self._sum
        if total is None:
            total = torch.zeros(self._shape, dtype=torch.float64, device=self._device)
        counts = torch.tensor(
            [self._samples, self._weight, self._losses], dtype=torch.float64, device="cpu"
        )
        is_mean_already = bool(self._first_weight) and self._sum_over_ranks is None
        if self._sum_over_ranks is not None:
            if self._first_weight:
                total = total.double().mul_(self._first_weight)
            total, counts = self._sum_over_ranks(total), self._sum_over_ranks(counts)
        samples, weight, losses = counts.tolist()
        divisor = 1.0 if self._is_sum else nonzero_weight(samples, weight)
        mean = total if is_mean_already else total.div_(divisor)
        return mean.to(dtype), losses / divisor, int(samples), weight


class NothingWeighsError(ValueError):
    """There is no loss: no sample, or none that weighs anything."""


def nonzero_weight(samples: float, weight: float) -> float:
    """Return the weight of all samples, to divide by.

    Raises
    ------
    ValueError
        It is 0.
    """
    if samples == 0:
        raise NothingWeighsError("data is empty: there is no loss to take the mean of")
    if weight == 0:
        raise NothingWeighsError(
            "all targets are ignored, or weigh 0: there is no loss to take the mean of"
        )
    return weight
