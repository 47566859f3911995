"""The outermost eigenvalues of an operator, by Lanczos with thick restarts."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from torch import Tensor

from steppe._shared.array_types import Flags, Floats
from steppe._shared.interrupts import uninterrupted
from steppe._shared.progress import progress
from steppe.landscape._result import Result, axes_for
from steppe.landscape.operators.operator import Operator
from steppe.landscape.spectra._lanczos import ROUNDING, Basis
from steppe.landscape.spectra._probes import Probes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Which = Literal["LM", "LA", "SA"]

# By what eigenvalues are sorted, the wanted ones first.
_ORDER: dict[str, Callable[[Floats], Floats]] = {
    "LM": lambda values: -np.abs(values),
    "LA": lambda values: -values,
    "SA": lambda values: values,
}

# Vectors kept beside the k wanted ones: fewer slow convergence down, more take memory.
_SPARE = 10
# The basis may grow beyond that while it is smaller than this: no restart costs no products.
_ROOM_BYTES = 1 << 27

_TINY = 1e-300

# It goes on to this part of the tolerance. Where eigenvalues lie close together, stopping at once
# missed one of four in 6 of 400 runs at 1e-3, going on in 1, for two products more.
_CAUTION = 0.1


@dataclass(frozen=True, eq=False)
class Eigenvalues(Result):
    """What :func:`top_eigenvalues` found.

    Attributes
    ----------
    values : ndarray
        The k eigenvalues, the wanted end first, in float64.
    vectors : Tensor
        Unit eigenvectors as columns, shape (size, k), in the operator's format; not in
        :meth:`to_dict`.
    residuals : ndarray
        r = ‖A v − λ v‖ of each pair: an eigenvalue of A lies no farther from λ.
    errors : ndarray
        min(r, r²/gap), with the gap to the other values found and to 0: a closer bound, as long as
        no eigenvalue in between has been missed.
    converged : ndarray
        Whether each error is at most ``tol``·|λ|, or no more than rounding.
    products : int
        How many products it took.
    which : str
        The end of the spectrum.
    """

    left_out: ClassVar[tuple[str, ...]] = ("vectors",)

    values: Floats
    vectors: Tensor = field(repr=False)
    residuals: Floats
    errors: Floats
    converged: Flags
    products: int
    which: str

    def plot(self, axes: "Axes | None" = None) -> "Axes":
        """Draw the eigenvalues with their errors."""
        from matplotlib.ticker import MaxNLocator

        axes = axes_for(axes, "Eigenvalues")
        places = np.arange(1, 1 + len(self.values))
        axes.axhline(0.0, color="0.8", lw=0.8)
        axes.errorbar(places, self.values, self.errors, fmt="o", color="#0072B2", capsize=3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set_xlabel("number")
        axes.set_ylabel("eigenvalue")
        return axes


def top_eigenvalues(
    H: Operator,
    k: int = 5,
    *,
    which: Which = "LM",
    tol: float = 1e-3,
    seed: int = 0,
    max_products: int | None = None,
) -> Eigenvalues:
    r"""Find the k outermost eigenvalues of a symmetric operator, with their vectors.

    Lanczos' method with full reorthogonalisation, inner products in float64. Where the basis
    outgrows its room, k + 10 vectors or 128 MiB, it restarts with the best Ritz vectors (thick
    restart). It stops when every value is right to ``tol``/10; vectors are right to about its root.

    Parameters
    ----------
    H : Operator
        Such as :func:`hessian` returns.
    k : int, default 5
        How many; from 1 to the operator's size.
    which : str, default "LM"
        "LM": largest in magnitude. "LA": largest, with sign. "SA": smallest, with sign.
    tol : float, default 1e-3
        Relative error of the values; positive.
    seed : int
        Of the start vector. Same seed, same answer.
    max_products : int, optional
        When to give up: what has not converged then is marked so. Default: 20·k + 200.

    Returns
    -------
    Eigenvalues
        On Ctrl-C, or when it gives up, what there is so far, marked as not converged.

    Raises
    ------
    ValueError
        ``k``, ``which``, ``tol`` or ``max_products`` is out of range, or a product is not finite.

    Notes
    -----
    An eigenvalue that is there several times is found as often only as rounding lets it; where an
    invariant subspace is complete, it goes on from a fresh random vector.

    References
    ----------
    Parlett, *The Symmetric Eigenvalue Problem*, 11.7, for the bound r²/gap. Wu and Simon,
    *Thick-restart Lanczos method for large symmetric eigenvalue problems*, SIAM J. Matrix Anal.
    Appl. 22 (2000).

    Examples
    --------
    >>> import torch
    >>> diagonal = torch.tensor([1.0, 5.0, -9.0, 2.0])
    >>> found = top_eigenvalues(Operator(4, lambda rows: rows * diagonal), k=2)
    >>> found.values.round(4), found.converged
    (array([-9.,  5.]), array([ True,  True]))
    """
    if not 1 <= k <= H.size:
        raise ValueError(f"k={k} must lie between 1 and the operator's size {H.size}")
    if which not in _ORDER:
        raise ValueError(f"which={which!r} is not one of {', '.join(_ORDER)}")
    if not tol > 0:
        raise ValueError(f"tol={tol} must be above 0")
    limit = 20 * k + 200 if max_products is None else max_products
    if limit < k:
        raise ValueError(f"max_products={max_products} must be at least k={k}")
    search = _Search(H, k, which, tol, seed)
    with progress(f"{k} eigenvalues", limit) as advance, H.held():
        try:
            while not search.is_done and search.products < limit:
                search.extend()
                advance(1)
        except KeyboardInterrupt:
            if len(search.projected) < k:
                raise
    return search.result()


class _Search:
    """A basis V, the projection VᵀAV, and the vector that comes next."""

    def __init__(self, H: Operator, k: int, which: Which, tol: float, seed: int) -> None:
        self.H, self.k, self.which, self.tol = H, k, which, tol
        self.probes = Probes(H, seed)
        per_vector = max(H.size * H.dtype.itemsize, 1)
        self.room = min(H.size, max(k + _SPARE, _ROOM_BYTES // per_vector))
        self.products = 0
        self.basis = Basis(self.probes.like(), kept=k)
        self.projected: Floats = np.zeros((0, 0))
        self.coupling = 0.0
        # Where a subspace was complete without being all: what it said, and whether it stands.
        self.wanted: Floats = np.zeros(0)
        self.is_whole = True
        self.next = self._fresh_vector()

    def extend(self) -> None:
        """Take one product, and restart where there is no more room."""
        if len(self.projected) == self.room:
            with uninterrupted():
                self._restart()
        product = self.H.rows(self.next.unsqueeze(0))[0].clone()
        with uninterrupted():
            self._add(product)

    def _add(self, product: Tensor) -> None:
        """Let basis and projection grow by the next vector, given its product."""
        self.products += 1
        self.basis.append(self.next)
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
        if left > self._rounding():
            self.coupling = left
            self.next = product.div_(left)
        else:
            # The basis spans an invariant subspace: what else there is lies outside it.
            self.coupling = 0.0
            self._compare()
            self.next = self._fresh_vector() if count < self.H.size else product
        self.residuals = self.coupling * np.abs(self.mixing[-1])

    @property
    def is_done(self) -> bool:
        """Whether the wanted pairs have converged."""
        if len(self.projected) < self.k or not self.is_whole:
            return False
        return bool(self._converged(_CAUTION * self.tol).all())

    def result(self) -> Eigenvalues:
        """Return the wanted pairs; the basis is used up."""
        k = self.k
        self.basis.rotate(self.mixing[:, :k])
        values, residuals = self.values[:k], self.residuals[:k]
        return Eigenvalues(
            values=values,
            vectors=self.basis.first(k).T,
            residuals=residuals,
            errors=self._errors(),
            converged=self._converged(self.tol),
            products=self.products,
            which=self.which,
        )

    def _converged(self, tol: float) -> Flags:
        """Whether each wanted value is right to a tolerance, or as right as rounding lets it."""
        sizes = np.abs(self.values[: self.k])
        found: Flags = self._errors() <= np.maximum(tol * sizes, self._rounding())
        return found

    def _errors(self) -> Floats:
        """Bound how far each wanted value is off, by its residual and its distance from others."""
        wanted = slice(self.k)
        values, residuals = self.values[wanted], self.residuals[wanted]
        apart = np.abs(values[:, None] - self.values) - self.residuals
        np.fill_diagonal(apart, np.inf)
        # Few values say little about the others; most of a loss's lie about 0.
        gaps = np.minimum(apart.min(axis=1), np.abs(values))
        bounds: Floats = residuals * residuals / np.maximum(np.maximum(gaps, residuals), _TINY)
        return bounds

    def _rounding(self) -> float:
        """Return the size of what is left of a product when there is nothing but rounding."""
        return ROUNDING[self.H.dtype] * max(float(np.abs(self.values).max()), _TINY)

    def _compare(self) -> None:
        """Note whether what the last fresh vector led to has changed the wanted values."""
        wanted, before = self.values[: self.k], self.wanted
        self.wanted = wanted
        self.is_whole = self.basis.count == self.H.size or (
            len(before) == self.k
            and np.allclose(wanted, before, rtol=self.tol, atol=self._rounding())
        )

    def _solve(self) -> None:
        """Find the Ritz values, the wanted end first, and how their vectors are mixed."""
        values, mixing = np.linalg.eigh(self.projected)
        order = np.argsort(_ORDER[self.which](values), kind="stable")
        self.values, self.mixing = values[order], mixing[:, order]

    def _restart(self) -> None:
        """Keep the best Ritz vectors and half of the spare ones beside; the next vector stays."""
        kept = min(self.k + _SPARE // 2, self.room - 1)
        self.basis.rotate(self.mixing[:, :kept])
        self.values, self.residuals = self.values[:kept], self.residuals[:kept]
        self.projected, self.mixing = np.diag(self.values), np.eye(kept)

    def _fresh_vector(self) -> Tensor:
        """Return a random unit vector orthogonal to the basis."""
        row = self.probes.sphere(1)[0]
        _, norm = self.basis.orthogonalise(row)
        return row.div_(norm)
