"""What Lanczos' method is made of: an orthonormal basis, row by row, and products in float64."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]

# Elements of each vector that are widened at a time: a copy in float64 of the whole basis would
# take twice its memory.
_PIECE = 1 << 16


def dots(rows: Sequence[Tensor], vector: Tensor) -> Tensor:
    """Return the inner products of rows with a vector, in float64."""
    total = torch.zeros(len(rows), dtype=torch.float64, device=vector.device)
    for piece in _pieces(len(vector)):
        total += torch.stack([row[piece] for row in rows]).double() @ vector[piece].double()
    return total


def subtract(vector: Tensor, rows: Sequence[Tensor], weights: Tensor) -> None:
    """Take a combination of rows away from a vector, in its place."""
    for piece in _pieces(len(vector)):
        combined = weights @ torch.stack([row[piece] for row in rows]).double()
        vector[piece] = (vector[piece].double() - combined).to(vector.dtype)


def orthogonalise(vector: Tensor, rows: Sequence[Tensor]) -> tuple[Tensor, float]:
    """Make a vector orthogonal to orthonormal rows, in its place.

    Twice is enough (Kahan; Parlett, *The Symmetric Eigenvalue Problem*, 6.9).

    Returns
    -------
    tuple
        Its components along the rows, and the norm of what is left.
    """
    components = torch.zeros(len(rows), dtype=torch.float64, device=vector.device)
    if rows:
        for _ in range(2):
            again = dots(rows, vector)
            subtract(vector, rows, again)
            components += again
    return components, vector.double().norm().item()


def rotate(rows: list[Tensor], weights: Floats) -> None:
    """Replace the first rows by combinations of all, one for each column of weights."""
    combine = torch.from_numpy(weights.T.copy())
    count = len(combine)
    combine = combine.to(rows[0].device)
    for piece in _pieces(len(rows[0])):
        combined = combine @ torch.stack([row[piece] for row in rows]).double()
        for row, values in zip(rows[:count], combined, strict=True):
            row[piece] = values.to(row.dtype)
    del rows[count:]


def _pieces(length: int) -> list[slice]:
    return [slice(start, start + _PIECE) for start in range(0, length, _PIECE)]
