"""Lanczos' method with thick restarts, which looks for repeated eigenvalues before it ends.

:func:`~steppe.landscape.top_eigenvalues` runs the search that stands here.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from steppe._shared.array_types import Flags, Floats
from steppe._shared.interrupts import uninterrupted
from steppe.landscape.operators.operator import Operator
from steppe.landscape.spectra._convergence import error_bounds, has_converged
from steppe.landscape.spectra._orthonormal_basis import ROUNDING, OrthonormalBasis, dots
from steppe.landscape.spectra._probes import Probes
from steppe.landscape.spectra._symmetry import SymmetryCheck

# Vectors kept beside the k wanted ones: fewer slow convergence down, more take memory.
SPARE = 10

_TINY = 1e-300

# The search goes on until this part of the tolerance is reached. Where eigenvalues lie close
# together, stopping at the tolerance itself missed one of four in 6 of 400 runs at 1e-3; going on
# missed one in 1 run, and took two products more.
_CAUTION = 0.1

# A random unit vector of n dimensions has less than this, over √n, along a given direction with a
# probability of 1 %.
_LEAST_SHARE = 0.0125

# The ends of the spectrum that are looked at: at 1 the largest values, at −1 the smallest.
ENDS: dict[str, tuple[int, ...]] = {"LM": (1, -1), "LA": (1,), "SA": (-1,)}

# Sort keys that put the wanted end of the spectrum first.
ORDER: dict[str, Callable[[Floats], Floats]] = {
    "LM": lambda values: -np.abs(values),
    "LA": lambda values: -values,
    "SA": lambda values: values,
}


class ThickRestartLanczos:
    """The state of a search: a basis V, the projection VᵀHV, and the vectors that may come next.

    Wu and Simon's method: a restart keeps several Ritz vectors, and the next vectors stay.

    From one start vector the basis gets one eigenvector of each eigenvalue, however often that is
    repeated. When the wanted pairs have converged, a new random vector outside the basis therefore
    starts another sequence (a round). Its vectors span a Krylov space of H restricted to the
    complement of the basis, in which the copies are; the values seen there are those of
    ``projected[begin:, begin:]``. Either they stay within the wanted ones, or the search goes on
    with what was found, and the next round follows.

    H·V = V·projected + Σ pᵢ ⊗ rowsᵢ holds throughout: the sequences' ends are the ``pending``
    vectors pᵢ, of length 1 and orthogonal to V.
    """

    def __init__(
        self,
        H: Operator,
        k: int,
        which: str,
        tol: float,
        seed: int,
        capacity: int,
    ) -> None:
        self.H, self.k, self.which, self.tol = H, k, which, tol
        self.probes = Probes(H, seed)
        self.symmetry = SymmetryCheck(H)
        self.capacity = capacity
        self.products = 0
        self.basis = OrthonormalBasis(self.probes.like(), kept=k)
        self.projected: Floats = np.zeros((0, 0))
        self.pending: list[Tensor] = []
        self.rows: Floats = np.zeros((0, 0))
        # In a round: where its vectors begin, and the last wanted value before it.
        self.begin: int | None = None
        self.last = 0.0
        # Values that may be repeated unseen, with the components of such an eigenvector along the
        # basis, relative to that along the round's first vector.
        self.suspects: list[tuple[float, Floats]] = []
        # Bounds on errors when the round began. They hold on: it can only make values better, while
        # values of its own that are far from converged make the present bounds worse.
        self.before_round: Floats = np.full(k, np.inf)
        # A single eigenvalue is right whether it is repeated or not.
        self.is_verified = k == 1
        self._start_sequence()

    def extend(self) -> None:
        """Compute one product and extend the basis, after a restart if it is full."""
        if len(self.projected) == self.capacity:
            with uninterrupted():
                self._restart()
        with uninterrupted():
            chosen = self._choose()
            vector = self.pending[chosen]
            # The basis has grown since.
            _, norm = self.basis.orthogonalise(vector)
            vector.div_(norm)
        product = self.H.rows(vector.unsqueeze(0))[0].clone()
        with uninterrupted():
            self._add(chosen, product)

    @property
    def should_stop(self) -> bool:
        """Whether the wanted pairs have converged, to a tenth of ``tol``, and none is missed.

        Also where products turn out to be no symmetric operator's: to go on is useless. The limit
        on products is the caller's.
        """
        if len(self.projected) < self.k:
            return False
        if self.symmetry.is_broken:
            return True
        return self.is_verified and self._has_converged_so_far()

    def converged(self) -> Flags:
        """Return which of the wanted pairs can be relied on."""
        found = self._have_converged(self.tol)
        if self.symmetry.is_broken:
            return np.zeros_like(found)
        if not self.is_verified:
            # One that is missed would stand before any but the first.
            found[1:] = False
        return found

    def reason(self) -> str:
        """Return in words why the search ended without all pairs, or nothing; see `converged`."""
        if self.symmetry.is_broken:
            return self.symmetry.reason(self.probes.sphere(1)[0])
        if not self._have_converged(self.tol).all():
            return f"{self.products} products were not enough: raise max_products"
        if not self.is_verified:
            return (
                f"{self.products} products were not enough to see whether repeated eigenvalues are "
                "missed: raise max_products"
            )
        return ""

    @property
    def residuals(self) -> Floats:
        """Bounds on ‖Hv − λv‖ of all Ritz pairs."""
        bounds: Floats = np.abs(self.rows @ self.mixing).sum(axis=0)
        return bounds

    def errors(self) -> Floats:
        """Return bounds on the errors of the wanted values."""
        return np.minimum(error_bounds(self.values, self.residuals, self.k), self.before_round)

    def _choose(self) -> int:
        """Return which pending vector comes next: the one that residuals owe most to."""
        if self.begin is not None or len(self.projected) < self.k:
            return len(self.pending) - 1
        waiting = ~self._have_converged(_CAUTION * self.tol)
        owed = np.abs(self.rows @ self.mixing[:, : self.k])[:, waiting]
        return int(owed.max(axis=1, initial=0.0).argmax())

    def _add(self, chosen: int, product: Tensor) -> None:
        """Extend basis and projection by a pending vector, given its product."""
        self.products += 1
        vector = self.pending[chosen]
        self.basis.append(vector)
        expected = self._take_out(chosen)
        components, left = self.basis.orthogonalise(product)
        column = components.numpy()
        if not np.isfinite(column).all():
            raise ValueError("a product is not finite: the operator, or its vector, overflows")
        count = self.basis.count
        grown = np.zeros((count, count))
        grown[:-1, :-1] = self.projected
        grown[-1, :], grown[:, -1] = column, column
        self.projected = grown
        self._solve()
        self.symmetry.compare(column[:-1], expected, float(np.abs(self.values).max()))
        self.rows = np.pad(self.rows, ((0, 0), (0, 1)))
        is_exhausted = left <= self._rounding()
        if not is_exhausted and count < self.H.size:
            self.pending.append(product.div_(left))
            self.rows = np.vstack([self.rows, np.append(np.zeros(count - 1), left)])
        begins = self._look_for_missed(is_exhausted)
        if (begins or not self.pending) and count < self.H.size:
            self._start_sequence()

    def _take_out(self, chosen: int) -> Floats:
        """Take a vector, now of the basis, out of the pending ones; return what H·V has of it."""
        vector = self.pending[chosen]
        shares = torch.cat([dots(p.unsqueeze(0), vector) for p in self.pending]).cpu().numpy()
        shares[chosen] = 1.0
        inside: Floats = shares @ self.rows
        lengths = np.zeros(len(shares))
        for index, share in enumerate(shares):
            if index != chosen:
                rest = self.pending[index].sub_(vector, alpha=float(share))
                lengths[index] = float(torch.linalg.vector_norm(rest, dtype=torch.float64))
        kept = [index for index, length in enumerate(lengths) if length > ROUNDING[self.H.dtype]]
        self.pending = [self.pending[index].div_(lengths[index]) for index in kept]
        self.rows = lengths[kept, None] * self.rows[kept]
        return inside

    def _look_for_missed(self, is_exhausted: bool) -> bool:
        """End a round that has told enough; return whether one begins, as all have converged."""
        count = len(self.projected)
        if self.is_verified or count < self.k:
            return False
        if count == self.H.size:
            self.is_verified = True
        elif self.begin is not None:
            found = np.linalg.eigvalsh(self.projected[self.begin :, self.begin :]).astype(float)
            if (ORDER[self.which](found) < self._edge()).any():
                self.begin, self.suspects = None, []
                self.before_round = np.full(self.k, np.inf)
            else:
                self.is_verified = is_exhausted or self._has_seen_enough()
        elif self._has_converged_so_far():
            self.begin, self.last = count, float(self.values[self.k - 1])
            self.before_round = self.errors()
            # A copy of the last wanted value, or of one as large, would change nothing.
            wanted = self.values[: self.k]
            before = wanted[ORDER[self.which](wanted) < self._edge()]
            ends = [end[np.abs(end).argmin()] for end in (before[before > 0], before[before <= 0])
                    if len(end)]  # fmt: skip
            self.suspects = [(float(value), np.zeros(count)) for value in ends]
            self.is_verified = not self.suspects
            return not self.is_verified
        return False

    def _edge(self) -> float:
        """Return the sort key below which a value would displace the last wanted one."""
        slack = max(self.tol * abs(self.last), self._rounding())
        return float(ORDER[self.which](np.array([self.last]))[0]) - slack

    def _has_seen_enough(self) -> bool:
        """Whether an eigenvector hidden from the earlier sequences would have shown in the round.

        Let u be an eigenvector of a repeated eigenvalue λ that is orthogonal to the basis before
        the round, and c its components along the basis: those of the round's vectors follow from
        uᵀHv = λuᵀv, and grow as λ lies outside of the values that the round sees. No component is
        above 1. So once they exceed by 80·√n the first, which was drawn at random, there is no such
        eigenvector, but for a probability of 1 %.
        """
        count, left = len(self.projected), self.rows[-1, -1]
        for index, (value, c) in enumerate(self.suspects):
            if len(c) < count:  # the round's first vector
                c = np.append(c, 1.0)
            following = (value * c[-1] - self.projected[-1] @ c) / left
            self.suspects[index] = value, np.append(c, following)
        enough = math.sqrt(self.H.size) / _LEAST_SHARE
        return all(np.linalg.norm(c) > enough for _, c in self.suspects)

    def _has_converged_so_far(self) -> bool:
        return bool(self._have_converged(_CAUTION * self.tol).all())

    def _have_converged(self, tol: float) -> Flags:
        return has_converged(self.values[: self.k], self.errors(), tol, self._rounding())

    def _rounding(self) -> float:
        """Return the norm up to which the rest of a product is rounding error only."""
        return ROUNDING[self.H.dtype] * max(float(np.abs(self.values).max()), _TINY)

    def _solve(self) -> None:
        """Find the Ritz values, the wanted end first, and their vectors in the basis (mixing)."""
        values, mixing = np.linalg.eigh(self.projected)
        order = np.argsort(ORDER[self.which](values), kind="stable")
        self.values, self.mixing = values[order], mixing[:, order]

    def _restart(self) -> None:
        """Keep the wanted Ritz vectors and half of the spare ones; pending vectors stay."""
        kept = min(self.k + SPARE // 2, self.capacity - 1)
        mixing = self.mixing
        self.basis.rotate(mixing[:, :kept])
        self.projected, self.rows = np.diag(self.values[:kept]), self.rows @ mixing[:, :kept]
        self._solve()
        if self.begin is not None:
            # The round goes on in the complement of the wanted pairs, which contains it.
            self.begin = self.k
            count = len(mixing)
            self.suspects = [
                (value, np.append(mixing[:, :kept].T @ c[:count], c[count:]))
                for value, c in self.suspects
            ]

    def _start_sequence(self) -> None:
        """Let a random vector come next."""
        self.pending.append(self._random_vector())
        self.rows = np.vstack([self.rows, np.zeros((1, self.rows.shape[1]))])

    def _random_vector(self) -> Tensor:
        """Return a random unit vector orthogonal to the basis."""
        row = self.probes.sphere(1)[0]
        _, norm = self.basis.orthogonalise(row)
        return row.div_(norm)
