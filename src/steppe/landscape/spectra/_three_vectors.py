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

from steppe._shared.array_types import Flags, Floats
from steppe._shared.interrupts import uninterrupted
from steppe.landscape.operators.operator import Operator
from steppe.landscape.spectra._convergence import error_bounds, has_converged
from steppe.landscape.spectra._lanczos import CAUTION, ENDS, RANDOM_SHARE, between
from steppe.landscape.spectra._misconvergence import StartVector
from steppe.landscape.spectra._orthonormal_basis import ROUNDING, dots
from steppe.landscape.spectra._probes import Probes
from steppe.landscape.spectra._repeated_values import ORDER
from steppe.landscape.spectra._symmetry import SymmetryCheck

_TINY = 1e-300

# Elements that are converted to float64 at a time.
_PIECE = 1 << 20


class ThreeVectorLanczos:
    """The state of a search: the last two vectors, and the tridiagonal matrix of all.

    It has what :class:`~steppe.landscape.spectra._lanczos.ThickRestartLanczos` has for k = 1, but
    no eigenvector.
    """

    k = 1

    def __init__(
        self, H: Operator, which: str, tol: float, seed: int, start: Tensor | None, verify: bool
    ) -> None:
        self.H, self.which, self.tol = H, which, tol
        self.probes, self.symmetry = Probes(H, seed), SymmetryCheck(H)
        self.products = 0
        self._is_verified = not verify
        self._start = StartVector(1.0 if start is None else RANDOM_SHARE)
        random = self.probes.sphere(1)[0]
        self._vector: Tensor | None = random if start is None else between(start, random)
        self._before: Tensor | None = None
        self._diagonal: list[float] = []
        self._beside: list[float] = []
        self.values: Floats = np.zeros(0)
        self.residuals: Floats = np.zeros(0)

    @property
    def projected(self) -> Floats:
        """The tridiagonal matrix."""
        beside = self._beside[: len(self._diagonal) - 1]
        found: Floats = np.diag(self._diagonal) + np.diag(beside, 1) + np.diag(beside, -1)
        return found

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
        self._diagonal.append(along)
        self._beside.append(left)
        values, mixing = np.linalg.eigh(self.projected)
        order = np.argsort(ORDER[self.which](values), kind="stable")
        self.values, self.residuals = values[order], np.abs(left * mixing[-1, order])
        self.symmetry.compare(found, expected, float(np.abs(self.values).max()))
        is_exhausted = left <= self._rounding() or self.products == self.H.size
        self._before, self._vector = vector, None if is_exhausted else product.div_(left)
        self._is_verified = self._is_verified or is_exhausted or self._is_first()

    @property
    def should_stop(self) -> bool:
        """Whether the value has converged, to a tenth of ``tol``, and none before it is missed."""
        if not self.products:
            return False
        is_done = self._is_verified and bool(self._has_converged(CAUTION * self.tol).all())
        return self.symmetry.is_broken or self._vector is None or is_done

    def converged(self) -> Flags:
        """Return whether the value can be relied on."""
        found = self._has_converged(self.tol)
        return found & self._is_verified & (not self.symmetry.is_broken)

    def errors(self) -> Floats:
        """Return a bound on the value's error."""
        return error_bounds(self.values, self.residuals, 1)

    def reason(self) -> str:
        """Return in words why the value cannot be relied on, or nothing."""
        if self.symmetry.is_broken:
            return self.symmetry.reason(self.probes.sphere(1)[0])
        if not self._has_converged(self.tol).all():
            return f"{self.products} products were not enough: raise max_products"
        if not self._is_verified:
            return (
                f"{self.products} products were not enough to see whether a larger one is missed: "
                "raise max_products"
            )
        return ""

    def _is_first(self) -> bool:
        """Whether an eigenvalue before it would have shown, but for 1 % of start vectors."""
        if not self._has_converged(CAUTION * self.tol).all():
            return False
        slack = max(self.tol * abs(float(self.values[0])), self._rounding())
        beyond = slack - float(ORDER[self.which](self.values[:1])[0])
        row = np.zeros(self.products)
        row[-1] = self._beside[-1]
        seen = (self._start.growth(self.projected, row, end * beyond) for end in ENDS[self.which])
        return all(each > self._start.too_large(self.H.size) for each in seen)

    def _has_converged(self, tol: float) -> Flags:
        return has_converged(self.values[:1], self.errors(), tol, self._rounding())

    def _rounding(self) -> float:
        return ROUNDING[self.H.dtype] * max(float(np.abs(self.values).max()), _TINY)


def _dot(one: Tensor, other: Tensor) -> float:
    return float(dots(one.unsqueeze(0), other))


def _norm(vector: Tensor) -> float:
    """Return ‖v‖ in float64, without a copy of all of v in that format."""
    pieces = [torch.linalg.vector_norm(x, dtype=torch.float64) for x in torch.split(vector, _PIECE)]
    return float(torch.linalg.vector_norm(torch.stack(pieces)))
