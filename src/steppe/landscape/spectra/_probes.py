"""Random probe vectors, the same on every device and in every process of a distributed run."""

from collections.abc import Iterator

import torch
from torch import Tensor

from steppe._shared.validation import checked_seed
from steppe.landscape.operators.operator import Operator

# Vectors that are multiplied at once share a forward pass and a gradient. A block of them takes at
# most so many bytes, and has at most so many vectors.
_BLOCK_BYTES = 1 << 26
_MOST_VECTORS = 16


class Probes:
    """Random vectors for an operator, as rows, drawn from a seed on the CPU."""

    def __init__(self, H: Operator, seed: int) -> None:
        self._operator = H
        self._generator = torch.Generator().manual_seed(checked_seed(seed))

    def like(self) -> Tensor:
        """Return a zero vector of the operator's size, format and device that takes no memory."""
        H = self._operator
        return torch.zeros((), dtype=H.dtype, device=H.device).expand(H.size)

    def signs(self, count: int) -> Tensor:
        """Return vectors of ±1: with independent entries no quadratic forms vary less.

        Hutchinson, *A stochastic estimator of the trace of the influence matrix*, 1989.
        """
        shape = count, self._operator.size
        bits = torch.randint(0, 2, shape, generator=self._generator, dtype=torch.int8, device="cpu")
        return (2 * bits - 1).to(self._operator.device, self._operator.dtype)

    def sphere(self, count: int) -> Tensor:
        """Return unit vectors, uniform on the sphere."""
        return torch.stack([self._direction() for _ in range(count)])

    def _direction(self) -> Tensor:
        # One by one, so that the block size does not change which vectors are drawn.
        H = self._operator
        row = torch.randn(H.size, generator=self._generator, dtype=H.dtype, device="cpu")
        return row.div_(row.double().norm()).to(H.device)


def blocks(H: Operator, count: int) -> Iterator[int]:
    """Yield the sizes of the blocks in which ``count`` vectors are multiplied."""
    per_vector = max(H.size * H.dtype.itemsize, 1)
    most = max(1, min(_MOST_VECTORS, _BLOCK_BYTES // per_vector))
    for done in range(0, count, most):
        yield min(most, count - done)
