"""Average rows over samples, batch by batch, in float64, over all processes."""

from collections.abc import Callable

import torch
from torch import Tensor

# Elements of each row that are added at a time.
_PIECE = 1 << 18


class SampleMean:
    """The mean of per-batch rows, each batch weighted by its size.

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
    """

    def __init__(
        self,
        shape: tuple[int, int],
        device: torch.device,
        sum_over_ranks: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._shape, self._device, self._sum_over_ranks = shape, device, sum_over_ranks
        self._sum: Tensor | None = None
        # Not 0 as long as _sum is the first batch's mean and not yet a sum over samples.
        self._first_size = 0
        self._losses = 0.0
        self._samples = 0

    def add(self, rows: Tensor, size: int, loss: float = 0.0) -> None:
        """Add a batch's rows and its loss, which are means over ``size`` samples."""
        self._losses += loss * size
        self._samples += size
        if self._sum is None:
            self._sum, self._first_size = rows, size
            return
        if self._first_size:
            self._sum, self._first_size = self._sum.double().mul_(self._first_size), 0
        # In pieces: add_ converts its whole argument to float64 first, as much memory again.
        totals, pieces = (torch.split(whole, _PIECE, dim=1) for whole in (self._sum, rows))
        for total, piece in zip(totals, pieces, strict=True):
            total.add_(piece, alpha=size)

    def result(self, dtype: torch.dtype) -> tuple[Tensor, float, int]:
        """Return the mean rows in a number format, the mean loss, and the number of samples.

        Raises
        ------
        ValueError
            There is no sample.
        """
        total = self._sum
        if total is None:
            total = torch.zeros(self._shape, dtype=torch.float64, device=self._device)
        counts = torch.tensor([self._samples, self._losses], dtype=torch.float64)
        is_mean_already = bool(self._first_size) and self._sum_over_ranks is None
        if self._sum_over_ranks is not None:
            if self._first_size:
                total = total.double().mul_(self._first_size)
            total, counts = self._sum_over_ranks(total), self._sum_over_ranks(counts)
        samples, losses = counts.tolist()
        loss = losses / nonzero_samples(samples)
        mean = total if is_mean_already else total.div_(samples)
        return mean.to(dtype), loss, int(samples)


def nonzero_samples(samples: float) -> float:
    """Return the number of samples, to divide by.

    Raises
    ------
    ValueError
        It is 0.
    """
    if samples == 0:
        raise ValueError("data is empty: there is no loss to take the mean of")
    return samples
