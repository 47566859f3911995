"""Lanczos' method with three vectors in memory, for the first eigenvalue without its vector.

Where a vector is as large as a language model, a basis of a dozen does not fit. The three-term
recurrence needs the last two vectors and the product. Without the others the vectors lose their
orthogonality, but only along eigenvectors that have converged already (Paige, *Error analysis of
the Lanczos algorithm for tridiagonalizing a symmetric matrix*, IMA J. Appl. Math. 18 (1976)): the
first eigenvalue comes as fast, and copies of it come later.
"""

import math

import numpy as np
import torch
from torch import Tensor

from steppe._shared.array_types import Floats
from steppe._shared.interrupts import uninterrupted
from steppe.landscape.operators.operator import Operator
from steppe.landscape.spectra._convergence import error_bounds
from steppe.landscape.spectra._orthonormal_basis import dots
from steppe.landscape.spectra._search import LanczosSearch, between

# Elements that are converted to float64 at a time.
_PIECE = 1 << 20


class ThreeVectorLanczos(LanczosSearch):
    """The state of a search: the last two vectors, and the tridiagonal matrix of all.

    It finds no eigenvector.
    """

    def __init__(
        self, H: Operator, which: str, tol: float, seed: int, start: Tensor | None, verify: bool
    ) -> None:
        super().__init__(H, 1, which, tol, seed, start is not None, verify)
        self._vector: Tensor | None = between(start, self.probes.sphere(1)[0])
        self._before: Tensor | None = None
        self._diagonal: list[float] = []
        self._beside: list[float] = []

    def extend(self) -> None:
        """Compute one product and extend the tridiagonal matrix."""
        vector = self._vector
        assert vector is not None
        product = self.H.rows(vector.unsqueeze(0))[0]
        if product.data_ptr() == vector.data_ptr():
            product = product.clone()
        with uninterrupted():
            self._add(vector, product)

    def _add(self, vector: Tensor, product: Tensor) -> None:
        self.products += 1
        found, expected = np.zeros(1), np.zeros(1)
        if self._before is not None:
            found[0], expected[0] = _dot(self._before, product), self._beside[-1]
            product.sub_(self._before, alpha=float(found[0]))
        along = 0.0
        for _ in range(2):  # once leaves a part of rounding's size
            more = _dot(vector, product)
            product.sub_(vector, alpha=more)
            along += more
        left = _norm(product)
        if not math.isfinite(along + left):
            raise ValueError("a product is not finite: the operator, or its vector, overflows")
        beside = np.array(self._beside)
        self._diagonal.append(along)
        self._beside.append(left)
        self.projected = np.diag(self._diagonal) + np.diag(beside, 1) + np.diag(beside, -1)
        self._solve()
        self.symmetry.compare(found, expected, float(np.abs(self.values).max()))
        is_exhausted = left <= self._rounding() or self.products == self.H.size
        self._before, self._vector = vector, None if is_exhausted else product.div_(left)
        self.is_verified = self.is_verified or is_exhausted or self._is_first_alone()

    @property
    def should_stop(self) -> bool:
        """Whether the value has converged, to a tenth of ``tol``, and none before it is missed."""
        if not self.products:
            return False
        is_done = self.is_verified and bool(self._have_converged_so_far().all())
        return self.symmetry.is_broken or self._vector is None or is_done

    @property
    def residuals(self) -> Floats:
        """‖Hv − λv‖ of all Ritz pairs, as long as vectors are orthogonal."""
        found: Floats = np.abs(self._beside[-1] * self.mixing[-1])
        return found

    def errors(self) -> Floats:
        """Return a bound on the value's error."""
        return error_bounds(self.values, self.residuals, 1)

    def _is_first_alone(self) -> bool:
        if not self._have_converged_so_far().all():
            return False
        row = np.zeros(self.products)
        row[-1] = self._beside[-1]
        assert self.start is not None
        return self._would_have_shown(self.start, row)


def _dot(one: Tensor, other: Tensor) -> float:
    return float(dots(one.unsqueeze(0), other))


def _norm(vector: Tensor) -> float:
    """Return ‖v‖ in float64, without a copy of all of v in that format."""
    pieces = [torch.linalg.vector_norm(x, dtype=torch.float64) for x in torch.split(vector, _PIECE)]
    return float(torch.linalg.vector_norm(torch.stack(pieces)))
