"""Tell whether a larger eigenvalue may be hidden behind one that Lanczos' method has found.

A start vector that is by chance almost orthogonal to the outermost eigenvector lets the next
eigenvalue converge first (Parlett, Simon and Stringer, *On estimating the largest eigenvalue with
the Lanczos algorithm*, Mathematics of Computation 38 (1982), call it misconvergence). Without the
look taken here, 3 of 40 searches with two eigenvalues 2 % apart ended at the second.
"""

import math
from dataclasses import dataclass, field

import numpy as np

from steppe._shared.array_types import Floats

# A random unit vector of n dimensions has less than this, over √n, along a given direction with a
# probability of 1 %.
_LEAST_SHARE = 0.0125

_TINY = 1e-300


def too_large(size: int) -> float:
    """Return a ratio that no eigenvector reaches, but for a probability of 1 %.

    It is that of all its components along orthonormal vectors, which are at most 1, to that along a
    random unit vector of ``size`` dimensions.
    """
    return math.sqrt(size) / _LEAST_SHARE


@dataclass(frozen=True)
class _Restart:
    """Ritz pairs at a restart, of which the first ``kept`` stay: vectors, values, residuals."""

    mixing: Floats
    values: Floats
    residuals: Floats
    kept: int


@dataclass
class StartVector:
    """The start vector of a search, as seen from a basis that restarts have made smaller.

    Let u be an eigenvector of an eigenvalue μ that the search has not found, V the basis, T = VᵀHV,
    p the vector that comes next and H·V = V·T + p⊗b. Then μ·Vᵀu = T·Vᵀu + b·(pᵀu): but for its
    length, which is at most 1, μ alone tells u's components along V and p, and so its component
    along the start vector. That was drawn at random. If it had to be tiny there is no such u.

    Parameters
    ----------
    random_share : float, default 1.0
        w, where the start vector is a given vector plus w times a random unit vector, shortened to
        length 1. A component that falls below a small bound by chance does so most often where
        the given vector has none, as that of a random vector is most often near 0. So what is known
        of a random start vector holds here for components w times as small.
    """

    random_share: float = 1.0
    _restarts: list[_Restart] = field(default_factory=list)

    def restart(self, mixing: Floats, values: Floats, residuals: Floats, kept: int) -> None:
        """Take note that only the first ``kept`` Ritz vectors stay in the basis.

        Parameters
        ----------
        mixing : ndarray
            The Ritz vectors in the basis, as columns; shape (count, count).
        values, residuals : ndarray
            The Ritz values θ, and with sign the residuals r of Hy = θy + r·p; shape (count,).
        kept : int
            How many stay.
        """
        self._restarts.append(_Restart(mixing, values, residuals, kept))

    def too_large(self, size: int) -> float:
        """Return the :meth:`growth` that no eigenvector reaches, but for a probability of 1 %."""
        return too_large(size) / self.random_share

    def growth(self, projected: Floats, row: Floats, value: float) -> float:
        """Return ‖u's components along the basis and p‖ over that along the start vector.

        Parameters
        ----------
        projected : ndarray
            T, shape (count, count).
        row : ndarray
            b, shape (count,).
        value : float
            μ, outside of T's eigenvalues.
        """
        along = np.linalg.solve(value * np.eye(len(row)) - projected, row)
        start = self._covector(len(row) + 1, value) @ np.append(along, 1.0)
        return math.hypot(1.0, float(np.linalg.norm(along))) / max(abs(float(start)), _TINY)

    def _covector(self, count: int, value: float) -> Floats:
        """Return what u's components are multiplied by to give that along the start vector.

        A restart drops Ritz vectors y. From Hy = θy + r·p follows yᵀu = r·pᵀu/(μ − θ), so that what
        the start vector had along them is found along p, the basis' next vector.
        """
        found = np.ones(1)
        for each in self._restarts:
            along = np.pad(found, (0, len(each.values) - len(found))) @ each.mixing
            dropped = along[each.kept :] * each.residuals[each.kept :]
            lost = float((dropped / (value - each.values[each.kept :])).sum())
            found = np.append(along[: each.kept], lost)
        return np.pad(found, (0, count - len(found)))
