"""Random vectors: the same on every device, and in every process of a distributed run."""

from collections.abc import Iterator

import torch
from torch import Tensor

from steppe.landscape.operators.operator import Operator

# Vectors that are multiplied at once share a forward pass and a gradient; so many bytes of them.
_BLOCK_BYTES = 1 << 26
_MOST = 16


class Probes:
    """Random vectors for an operator, as rows, drawn one after the other from a seed."""

    def __init__(self, H: Operator, seed: int) -> None:
        self._operator = H
        self._generator = torch.Generator().manual_seed(seed)

    def like(self) -> Tensor:
        """Return a vector of the operator's size, format and device that takes no memory."""
        H = self._operator
        return torch.zeros((), dtype=H.dtype, device=H.device).expand(H.size)

    def signs(self, count: int) -> Tensor:
        """Return vectors of ±1: their quadratic forms vary least (Hutchinson)."""
        shape = count, self._operator.size
        bits = torch.randint(0, 2, shape, generator=self._generator, dtype=torch.int8)
        return (2 * bits - 1).to(self._operator.device, self._operator.dtype)

    def sphere(self, count: int) -> Tensor:
        """Return unit vectors, uniform on the sphere."""
        return torch.stack([self._direction() for _ in range(count)])

    def _direction(self) -> Tensor:
        # One by one: how many are drawn at once must not change what is drawn.
        H = self._operator
        row = torch.randn(H.size, generator=self._generator, dtype=H.dtype)
        return row.div_(row.double().norm()).to(H.device)


def blocks(H: Operator, count: int) -> Iterator[int]:
    """Cut a number of vectors into blocks that are multiplied at once."""
    per_vector = max(H.size * H.dtype.itemsize, 1)
    most = max(1, min(_MOST, _BLOCK_BYTES // per_vector))
    for done in range(0, count, most):
        yield min(most, count - done)
