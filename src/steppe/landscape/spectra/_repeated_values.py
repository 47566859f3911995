"""Look for copies of eigenvalues where one start vector shows one vector of each.

A round of it ends a search of ``_lanczos`` for several eigenvalues.
"""

from collections.abc import Callable

import numpy as np

from steppe._shared.array_types import Floats
from steppe.landscape.spectra._misconvergence import too_large

# Sort keys that put the wanted end of the spectrum first.
ORDER: dict[str, Callable[[Floats], Floats]] = {
    "LM": lambda values: -np.abs(values),
    "LA": lambda values: -values,
    "SA": lambda values: values,
}


class Round:
    """A sequence of vectors that begins with a random one in the complement of the basis.

    Its vectors span a Krylov space of H restricted to that complement. The values seen there are
    those of ``projected[begin:, begin:]``.

    Parameters
    ----------
    wanted : ndarray
        The k wanted values that have converged, the outermost first.
    begin : int
        Where the round's vectors begin in the basis.
    which : str
        The end of the spectrum, a key of ``ORDER``.
    slack : float
        By how much a value has to exceed the last wanted one to displace it.
    """

    def __init__(self, wanted: Floats, begin: int, which: str, slack: float) -> None:
        self._order, self._begin = ORDER[which], begin
        self._edge = float(self._order(wanted[-1:])[0]) - slack
        # A copy of the last wanted value, or of one as large, would change nothing.
        before = wanted[self._order(wanted) < self._edge]
        ends = (end for end in (before[before > 0], before[before <= 0]) if len(end))
        nearest = (float(end[np.abs(end).argmin()]) for end in ends)
        #: Values that may be repeated unseen, with the components of such an eigenvector along the
        #: basis, relative to that along the round's first vector.
        self.suspects: list[tuple[float, Floats]] = [(each, np.zeros(begin)) for each in nearest]

    def shows_more(self, projected: Floats) -> bool:
        """Whether the round has seen a value that displaces the last wanted one."""
        found = np.linalg.eigvalsh(projected[self._begin :, self._begin :]).astype(float)
        return bool((self._order(found) < self._edge).any())

    def has_seen_enough(self, projected: Floats, left: float, size: int) -> bool:
        """Whether an eigenvector hidden from the earlier sequences would have shown in the round.

        Let u be an eigenvector of a repeated eigenvalue λ that is orthogonal to the basis before
        the round, and c its components along the basis: those of the round's vectors follow from
        uᵀHv = λuᵀv, and grow as λ lies outside of the values that the round sees. No component is
        above 1. So once they exceed by 80·√n the first, which was drawn at random, there is no such
        eigenvector, but for a probability of 1 %.

        Parameters
        ----------
        projected : ndarray
            VᵀHV of the basis V, which has grown by one vector since the last call.
        left : float
            Component of that vector's product along the vector that comes next.
        size : int
            n, the operator's.
        """
        count = len(projected)
        for index, (value, c) in enumerate(self.suspects):
            if len(c) < count:  # the round's first vector
                c = np.append(c, 1.0)
            following = (value * c[-1] - projected[-1] @ c) / left
            self.suspects[index] = value, np.append(c, following)
        return all(np.linalg.norm(c) > too_large(size) for _, c in self.suspects)

    def restart(self, mixing: Floats, k: int) -> None:
        """Take note that the basis has become its first Ritz vectors.

        The round goes on in the complement of the k wanted pairs, which contains its own.

        Parameters
        ----------
        mixing : ndarray
            The Ritz vectors in the old basis, as columns.
        k : int
            How many pairs are wanted.
        """
        self._begin, count = k, len(mixing)
        self.suspects = [
            (value, np.append(mixing.T @ c[:count], c[count:])) for value, c in self.suspects
        ]
