"""What searches for outermost eigenvalues share: when values can be relied on, and why not.

With a basis in memory it is ``_lanczos``, with three vectors ``_three_vectors``.
"""

import math
from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor

from steppe._shared.array_types import Flags, Floats
from steppe.landscape.operators.operator import Operator
from steppe.landscape.spectra._convergence import has_converged
from steppe.landscape.spectra._misconvergence import StartVector
from steppe.landscape.spectra._orthonormal_basis import ROUNDING
from steppe.landscape.spectra._probes import Probes
from steppe.landscape.spectra._repeated_values import ORDER
from steppe.landscape.spectra._symmetry import SymmetryCheck

_TINY = 1e-300

# The search goes on until this part of the tolerance is reached. Where eigenvalues lie close
# together, stopping at the tolerance itself missed one of four in 6 of 400 runs at 1e-3; going on
# missed one in 1 run, and took two products more.
_CAUTION = 0.1

# Length of the random part of a start vector that is given, whose own part makes it up to 1. With
# 0.1 and with 0.3 searches that verify nothing took as long, and 2 of 72 missed a larger value;
# those that verify took a product or two more than from a random vector alone, with either.
_RANDOM_SHARE = 0.3

# The ends of the spectrum that are looked at: at 1 the largest values, at −1 the smallest.
_ENDS: dict[str, tuple[int, ...]] = {"LM": (1, -1), "LA": (1,), "SA": (-1,)}


class LanczosSearch(ABC):
    """A search for the k outermost eigenvalues from one start vector.

    Attributes
    ----------
    projected : ndarray
        The projection VᵀHV onto the vectors so far.
    values, mixing : ndarray
        Its eigenvalues, the wanted end first, and their vectors: Ritz values and pairs.
    start : StartVector or None
        What is known of the start vector; None where it tells nothing any more.
    is_verified : bool
        Whether no value is missed, or nobody asks.
    """

    def __init__(
        self, H: Operator, k: int, which: str, tol: float, seed: int, has_start: bool, verify: bool
    ) -> None:
        self.H, self.k, self.which, self.tol = H, k, which, tol
        self.probes, self.symmetry = Probes(H, seed), SymmetryCheck(H)
        self.products = 0
        self.projected: Floats = np.zeros((0, 0))
        self.values: Floats = np.zeros(0)
        self.mixing: Floats = np.zeros((0, 0))
        self.start: StartVector | None = StartVector(_RANDOM_SHARE if has_start else 1.0)
        self.is_verified = not verify

    @abstractmethod
    def errors(self) -> Floats:
        """Return bounds on the errors of the wanted values."""

    def converged(self) -> Flags:
        """Return which of the wanted pairs can be relied on."""
        found = self._have_converged(self.tol)
        if self.symmetry.is_broken:
            return np.zeros_like(found)
        if not self.is_verified:
            # A copy that is missed would stand behind the first.
            found[int(self._is_first_alone()) :] = False
        return found

    def reason(self) -> str:
        """Return in words why the search ended without all pairs, or nothing; see `converged`."""
        if self.symmetry.is_broken:
            return self.symmetry.reason(self.probes.sphere(1)[0])
        if not self._have_converged(self.tol).all():
            return f"{self.products} products were not enough: raise max_products"
        if not self.is_verified:
            missed = "repeated eigenvalues are" if self._is_first_alone() else "a larger one is"
            return (
                f"{self.products} products were not enough to see whether {missed} missed: raise "
                "max_products"
            )
        return ""

    @abstractmethod
    def _is_first_alone(self) -> bool:
        """Whether an eigenvalue before the first would have shown."""

    def _would_have_shown(self, start: StartVector, row: Floats) -> bool:
        """Whether an eigenvalue before the first would have, but for 1 % of start vectors.

        ``row`` is what the next vector has of H·V, as in :meth:`StartVector.growth`.
        """
        beyond = float(self._slack(0) - ORDER[self.which](self.values[:1])[0])
        seen = (start.growth(self.projected, row, end * beyond) for end in _ENDS[self.which])
        return all(each > start.too_large(self.H.size) for each in seen)

    def _have_converged_so_far(self) -> Flags:
        """Return which of the wanted values need no more products."""
        return self._have_converged(_CAUTION * self.tol)

    def _have_converged(self, tol: float) -> Flags:
        return has_converged(self.values[: self.k], self.errors(), tol, self._rounding())

    def _slack(self, index: int) -> float:
        """Return by how much another value must lie outside of a Ritz value to differ from it."""
        return max(self.tol * abs(float(self.values[index])), self._rounding())

    def _rounding(self) -> float:
        """Return the norm up to which the rest of a product is rounding error only."""
        return ROUNDING[self.H.dtype] * max(float(np.abs(self.values).max()), _TINY)

    def _solve(self) -> None:
        """Find the Ritz values, the wanted end first, and their vectors in the basis (mixing)."""
        values, mixing = np.linalg.eigh(self.projected)
        order = np.argsort(ORDER[self.which](values), kind="stable")
        self.values, self.mixing = values[order], mixing[:, order]


def between(start: Tensor | None, random: Tensor) -> Tensor:
    """Return a unit vector near a given one, with a random part; without one the random one."""
    if start is None:
        return random
    vector = math.sqrt(1 - _RANDOM_SHARE**2) * start + _RANDOM_SHARE * random
    return vector.div_(float(torch.linalg.vector_norm(vector, dtype=torch.float64)))
