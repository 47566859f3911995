"""An orthonormal basis that grows, is rotated and cut: eigenvalues, density and trace use it."""

import torch
from torch import Tensor

from steppe._shared.array_types import Floats

# Elements whose products are summed in the vectors' own format; these sums are added in float64.
_PIECE = 1 << 14

# Rows that memory is allocated for at a time.
_ROWS = 16

#: A vector that orthogonalising shortens to this part of its length is rounding error only.
ROUNDING = {torch.float32: 1e-6, torch.float64: 1e-13}


class OrthonormalBasis:
    """Orthonormal vectors as rows of a few blocks of memory.

    Memory grows block by block, as vectors can be as large as a model: a full-size allocation up
    front may not fit, and one tensor per vector would have to be copied into one for each product.

    Parameters
    ----------
    like : Tensor
        A vector of the length, number format and device of all.
    kept : int, default 16
        Number of rows in the first block, which :meth:`first` can return without a copy.
    """

    def __init__(self, like: Tensor, kept: int = _ROWS) -> None:
        self._like = like
        self._blocks = [self._new_block(kept)]
        self.count = 0

    def append(self, row: Tensor) -> None:
        """Add a row, a unit vector orthogonal to the others."""
        position = self.count
        for block in self._blocks:
            if position < len(block):
                block[position] = row
                break
            position -= len(block)
        else:
            self._blocks.append(self._new_block(_ROWS))
            self._blocks[-1][0] = row
        self.count += 1

    def orthogonalise(self, vector: Tensor) -> tuple[Tensor, float]:
        """Make a vector orthogonal to the rows, in place, by Gram and Schmidt's method.

        It is applied twice, because once loses orthogonality to rounding and twice is enough
        (Kahan; Parlett, *The Symmetric Eigenvalue Problem*, 6.9).

        Returns
        -------
        components : Tensor
            The vector's components along the rows, shape (count,), in float64.
        norm : float
            The norm of the vector afterwards.
        """
        components = torch.zeros(self.count, dtype=torch.float64, device="cpu")
        if self.count:
            for _ in range(2):
                components += self._subtract_projection(vector)
        return components, float(torch.linalg.vector_norm(vector, dtype=torch.float64))

    def rotate(self, weights: Floats) -> None:
        """Replace the rows by linear combinations of them, one for each column of weights."""
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
        """Return the first rows, at most ``kept`` of them, and free the other blocks."""
        del self._blocks[1:]
        return self._blocks[0][:count]

    def _subtract_projection(self, vector: Tensor) -> Tensor:
        used = self._used()
        inner = [dots(rows, vector) for rows in used]
        for rows, each in zip(used, inner, strict=True):
            vector.addmv_(rows.T, each.to(rows.dtype), alpha=-1.0)
        return torch.cat(inner).cpu()

    def _used(self) -> list[Tensor]:
        used, left = [], self.count
        for block in self._blocks:
            if left > 0:
                used.append(block[:left])
            left -= len(block)
        return used

    def _new_block(self, rows: int) -> Tensor:
        return self._like.new_empty(rows, len(self._like))


def dots(rows: Tensor, vector: Tensor) -> Tensor:
    """Return the rows' inner products with a vector, summed in float64."""
    total = torch.zeros(len(rows), dtype=torch.float64, device=vector.device)
    for start in range(0, len(vector), _PIECE):
        piece = slice(start, start + _PIECE)
        total += rows[:, piece] @ vector[piece]
    return total
