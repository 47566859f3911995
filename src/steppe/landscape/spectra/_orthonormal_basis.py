"""What Lanczos' method is made of: an orthonormal basis that grows and is rotated."""

import torch
from torch import Tensor

from steppe._shared.array_types import Floats

# Elements whose products are added up in the vectors' own format; their sums are in float64.
_PIECE = 1 << 14

# Rows that memory is taken for at a time.
_ROWS = 16

#: What is left of a vector, relative to its length, when there is nothing but rounding.
ROUNDING = {torch.float32: 1e-6, torch.float64: 1e-13}


class Basis:
    """Orthonormal vectors as rows, in as few pieces of memory as they need.

    Parameters
    ----------
    like : Tensor
        A vector, whose length, format and device are those of all.
    kept : int
        How many rows will be wanted at the end: they can be had without a copy.
    """

    def __init__(self, like: Tensor, kept: int = _ROWS) -> None:
        self._like = like
        self._blocks = [self._room(kept)]
        self.count = 0

    def append(self, row: Tensor) -> None:
        """Add a row."""
        place = self.count
        for block in self._blocks:
            if place < len(block):
                block[place] = row
                break
            place -= len(block)
        else:
            self._blocks.append(self._room(_ROWS))
            self._blocks[-1][0] = row
        self.count += 1

    def orthogonalise(self, vector: Tensor) -> tuple[Tensor, float]:
        """Make a vector orthogonal to the rows, in its place.

        Twice is enough (Kahan; Parlett, *The Symmetric Eigenvalue Problem*, 6.9).

        Returns
        -------
        tuple
            Its components along the rows in float64, and the norm of what is left.
        """
        components = torch.zeros(self.count, dtype=torch.float64)
        if self.count:
            for _ in range(2):
                components += self._dots_and_subtract(vector)
        return components, float(torch.linalg.vector_norm(vector, dtype=torch.float64))

    def rotate(self, weights: Floats) -> None:
        """Replace the rows by combinations of them, one for each column of weights."""
        mixing = torch.from_numpy(weights.T.copy()).to(self._like.device)
        for start in range(0, len(self._like), _PIECE):
            piece = slice(start, start + _PIECE)
            old = torch.cat([rows[:, piece] for rows in self._used()]).double()
            new = mixing @ old
            for rows in self._used():
                values, new = new[: len(rows)], new[len(rows) :]
                rows[: len(values), piece] = values.to(rows.dtype)
        self.count = weights.shape[1]

    def first(self, count: int) -> Tensor:
        """Return the first rows, at most those that were to be kept, and let go of the others."""
        del self._blocks[1:]
        return self._blocks[0][:count]

    def _dots_and_subtract(self, vector: Tensor) -> Tensor:
        used = self._used()
        dots = [_dots(rows, vector) for rows in used]
        for rows, each in zip(used, dots, strict=True):
            vector.addmv_(rows.T, each.to(rows.dtype), alpha=-1.0)
        return torch.cat(dots).cpu()

    def _used(self) -> list[Tensor]:
        used, left = [], self.count
        for block in self._blocks:
            if left > 0:
                used.append(block[:left])
            left -= len(block)
        return used

    def _room(self, rows: int) -> Tensor:
        return self._like.new_empty(rows, len(self._like))


def _dots(rows: Tensor, vector: Tensor) -> Tensor:
    """Return inner products in float64."""
    total = torch.zeros(len(rows), dtype=torch.float64, device=vector.device)
    for start in range(0, len(vector), _PIECE):
        piece = slice(start, start + _PIECE)
        total += rows[:, piece] @ vector[piece]
    return total
