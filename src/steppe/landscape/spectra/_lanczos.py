"""Lanczos' method with thick restarts, which looks for missed eigenvalues before it ends.

:func:`~steppe.landscape.top_eigenvalues` runs the search that stands here.
"""

import numpy as np
import torch
from torch import Tensor

from steppe._shared.array_types import Floats
from steppe._shared.interrupts import uninterrupted
from steppe.landscape.operators.operator import Operator
from steppe.landscape.spectra._convergence import error_bounds
from steppe.landscape.spectra._orthonormal_basis import ROUNDING, OrthonormalBasis, dots
from steppe.landscape.spectra._repeated_values import Round
from steppe.landscape.spectra._search import LanczosSearch, between

# Vectors kept beside the k wanted ones: fewer slow convergence down, more take memory.
SPARE = 10


class ThickRestartLanczos(LanczosSearch):
    """The state of a search: a basis V, the projection VᵀHV, and the vectors that may come next.

    Wu and Simon's method: a restart keeps several Ritz vectors, and the next vectors stay.

    From one start vector the basis gets one eigenvector of each eigenvalue, however often that is
    repeated. When the wanted pairs have converged, a new random vector outside the basis therefore
    starts another sequence (a round). Its vectors span a Krylov space of H restricted to the
    complement of the basis, in which the copies are. Either the values seen there stay within the
    wanted ones, or the search goes on with what was found, and the next round follows. Of the first
    value alone the start vector tells enough, see ``_misconvergence``.

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
        start: Tensor | None = None,
        verify: bool = True,
    ) -> None:
        super().__init__(H, k, which, tol, seed, start is not None, verify)
        self.capacity = capacity
        self.basis = OrthonormalBasis(self.probes.like(), kept=k)
        self.pending: list[Tensor] = []
        self.rows: Floats = np.zeros((0, 0))
        self.round: Round | None = None
        # Bounds on errors when the round began. They hold on: it can only make values better, while
        # values of its own that are far from converged make the present bounds worse.
        self.before_round: Floats = np.full(k, np.inf)
        # Whether none is missed before the first value, or nobody asks.
        self.is_first_verified = not verify
        self._start_sequence(start)

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
        return self.is_verified and bool(self._have_converged_so_far().all())

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
        if self.round is not None or len(self.projected) < self.k:
            return len(self.pending) - 1
        waiting = ~self._have_converged_so_far()
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
            # Its relations hold no more.
            self.start = None
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
            self.is_first_verified = self.is_verified = True
        elif self.round is not None:
            self._look_for_copies(self.round, is_exhausted)
        elif self._have_converged_so_far().all():
            self.is_first_verified = is_exhausted or self._is_first_alone()
            if self.is_first_verified and self.k > 1:
                return self._begin_round()
            # A single one is right whether it is repeated or not.
            self.is_verified = self.is_first_verified
        return False

    def _is_first_alone(self) -> bool:
        """Whether an eigenvalue before the first would have shown, but for 1 % of start vectors."""
        if self.start is None or not self.pending:
            return self.is_first_verified
        return self._would_have_shown(self.start, self.rows[-1])

    def _begin_round(self) -> bool:
        """Begin to look for repeated values; return False where none would change anything."""
        wanted, begin = self.values[: self.k], len(self.projected)
        self.before_round = self.errors()
        self.round = Round(wanted, begin, self.which, self._slack(self.k - 1))
        self.is_verified = not self.round.suspects
        return not self.is_verified

    def _look_for_copies(self, searched: Round, is_exhausted: bool) -> None:
        """End a round in which a larger value shows, or that has seen enough."""
        if searched.shows_more(self.projected):
            self.round = None
            self.before_round = np.full(self.k, np.inf)
            return
        self.is_verified = is_exhausted or searched.has_seen_enough(
            self.projected, float(self.rows[-1, -1]), self.H.size
        )
        self.is_first_verified |= self.is_verified

    def _restart(self) -> None:
        """Keep the wanted Ritz vectors and half of the spare ones; pending vectors stay."""
        kept = min(self.k + SPARE // 2, self.capacity - 1)
        mixing = self.mixing
        if self.start is not None:
            self.start.restart(mixing, self.values, self.rows[-1] @ mixing, kept)
        self.basis.rotate(mixing[:, :kept])
        self.projected, self.rows = np.diag(self.values[:kept]), self.rows @ mixing[:, :kept]
        self._solve()
        if self.round is not None:
            self.round.restart(mixing[:, :kept], self.k)

    def _start_sequence(self, start: Tensor | None = None) -> None:
        """Let a random vector come next, or one near a given vector."""
        self.pending.append(between(start, self._random_vector()))
        self.rows = np.vstack([self.rows, np.zeros((1, self.rows.shape[1]))])

    def _random_vector(self) -> Tensor:
        """Return a random unit vector orthogonal to the basis."""
        row = self.probes.sphere(1)[0]
        _, norm = self.basis.orthogonalise(row)
        return row.div_(norm)
