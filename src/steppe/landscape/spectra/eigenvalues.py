"""The outermost eigenvalues of an operator, by Lanczos' method with thick restarts.

:func:`has_converged` is the criterion by which the search for λ_max and its neighbours stops.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from torch import Tensor

from steppe._shared.array_types import Flags, Floats
from steppe._shared.interrupts import uninterrupted
from steppe._shared.progress import progress
from steppe.landscape._drawing import BLUE, axes_for
from steppe.landscape.operators.operator import Operator
from steppe.landscape.result import Result
from steppe.landscape.spectra._orthonormal_basis import ROUNDING, OrthonormalBasis
from steppe.landscape.spectra._probes import Probes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Which = Literal["LM", "LA", "SA"]

# Sort keys that put the wanted end of the spectrum first.
_ORDER: dict[str, Callable[[Floats], Floats]] = {
    "LM": lambda values: -np.abs(values),
    "LA": lambda values: -values,
    "SA": lambda values: values,
}

# Vectors kept beside the k wanted ones: fewer slow convergence down, more take memory.
_SPARE = 10
# The basis may have more vectors as long as it is smaller than this: without restarts the method
# needs fewer products.
_BASIS_BYTES = 1 << 27

_TINY = 1e-300

# The search goes on until this part of the tolerance is reached. Where eigenvalues lie close
# together, stopping at the tolerance itself missed one of four in 6 of 400 runs at 1e-3; going on
# missed one in 1 run, and took two products more.
_CAUTION = 0.1


@dataclass(frozen=True, eq=False)
class Eigenvalues(Result):
    """The result of :func:`top_eigenvalues`.

    Attributes
    ----------
    values : ndarray
        The k eigenvalues, the wanted end of the spectrum first, in float64; shape (k,).
    vectors : Tensor
        Unit eigenvectors as columns, shape (size, k), in the operator's format; not in
        :meth:`to_dict`.
    residuals : ndarray
        r = ‖Hv − λv‖ of each pair, shape (k,): an eigenvalue of H lies no farther from λ.
    errors : ndarray
        min(r, r²/gap) of each pair, shape (k,), with the gap to the other values found and to 0: a
        closer bound, as long as no eigenvalue in between has been missed.
    converged : ndarray
        Whether each error is at most ``tol``·|λ|, or no more than rounding; shape (k,).
    products : int
        How many products it took.
    which : str
        The end of the spectrum that was searched.
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
        positions = np.arange(1, 1 + len(self.values))
        axes.axhline(0.0, color="0.8", lw=0.8)
        axes.errorbar(positions, self.values, self.errors, fmt="o", color=BLUE, capsize=3)
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

    It is Lanczos' method with full reorthogonalisation and inner products in float64. Where the
    basis exceeds both k + 10 vectors and 128 MiB, the method restarts with the best Ritz vectors
    (thick restart). It stops when every value's error bound is below ``tol``/10 of the value;
    vectors are then right to about √(``tol``/10).

    Parameters
    ----------
    H : Operator
        A symmetric operator, such as :func:`~steppe.landscape.hessian` returns.
    k : int, default 5
        Number of eigenvalues, from 1 to the operator's size.
    which : str, default "LM"
        "LM": largest in magnitude. "LA": largest, with sign. "SA": smallest, with sign.
    tol : float, default 1e-3
        Relative error of the values, positive.
    seed : int, default 0
        Seed of the start vector: the same seed gives the same result.
    max_products : int, optional
        Maximum number of products: values that have not converged by then are marked so. Default:
        20·k + 200.

    Returns
    -------
    Eigenvalues
        On Ctrl-C, or at ``max_products``, the present approximations, marked as not converged.

    Raises
    ------
    ValueError
        ``k``, ``which``, ``tol`` or ``max_products`` is out of range, or a product is not finite.

    Notes
    -----
    In exact arithmetic Lanczos' method finds one vector of a multiple eigenvalue; rounding brings
    in the others. Where the basis spans an invariant subspace, the search goes on from a new random
    vector.

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
    search = _ThickRestartLanczos(H, k, which, tol, seed)
    with progress(f"{k} eigenvalues", limit) as advance, H.held():
        try:
            while not search.is_done and search.products < limit:
                search.extend()
                advance(1)
        except KeyboardInterrupt:
            if len(search.projected) < k:
                raise
    return search.result()


def has_converged(values: Floats, errors: Floats, tol: float, rounding: float) -> Flags:
    """Whether each eigenvalue is as exact as asked for, or as rounding permits.

    A value λ has converged where its error bound is at most max(tol·|λ|, rounding). This is
    ARPACK's criterion (Lehoucq, Sorensen and Yang, *ARPACK Users' Guide*: ``TOL`` of ``dsaupd``),
    with the bound of :func:`error_bounds` in place of the residual.

    Parameters
    ----------
    values : ndarray
        The approximate eigenvalues, shape (k,).
    errors : ndarray
        Bounds on how far each value is off, shape (k,).
    tol : float
        Relative error.
    rounding : float
        Absolute error that the vectors' number format makes unavoidable.

    Examples
    --------
    >>> has_converged(np.array([10.0, 10.0]), np.array([0.005, 0.05]), tol=1e-3, rounding=1e-6)
    array([ True, False])
    """
    converged: Flags = errors <= np.maximum(tol * np.abs(values), rounding)
    return converged


def error_bounds(values: Floats, residuals: Floats, k: int) -> Floats:
    """Bound how far each of the first k Ritz values is from an eigenvalue: min(r, r²/gap).

    r is the residual of the pair, and the gap its distance from the other Ritz values, each less
    its own residual, and from 0, where most eigenvalues of a loss lie. The bound is Kato and
    Temple's (Parlett, *The Symmetric Eigenvalue Problem*, 11.7).

    Parameters
    ----------
    values, residuals : ndarray
        All Ritz values, the wanted ones first, and their residuals; shape (count,).
    k : int
        How many are wanted.

    Examples
    --------
    >>> error_bounds(np.array([5.0, 1.0]), np.array([0.1, 0.0]), k=1).round(6)
    array([0.0025])
    """
    wanted, r = values[:k], residuals[:k]
    distances = np.abs(wanted[:, None] - values) - residuals
    np.fill_diagonal(distances, np.inf)
    # With few Ritz values the others say little about the spectrum: 0 stands for what is not found.
    gaps = np.minimum(distances.min(axis=1), np.abs(wanted))
    bounds: Floats = r * r / np.maximum(np.maximum(gaps, r), _TINY)
    return bounds


class _ThickRestartLanczos:
    """The state of a search: a basis V, the projection VᵀHV, and the vector that comes next.

    Wu and Simon's method: a restart keeps several Ritz vectors, and the next vector stays.
    """

    def __init__(self, H: Operator, k: int, which: Which, tol: float, seed: int) -> None:
        self.H, self.k, self.which, self.tol = H, k, which, tol
        self.probes = Probes(H, seed)
        per_vector = max(H.size * H.dtype.itemsize, 1)
        self.capacity = min(H.size, max(k + _SPARE, _BASIS_BYTES // per_vector))
        self.products = 0
        self.basis = OrthonormalBasis(self.probes.like(), kept=k)
        self.projected: Floats = np.zeros((0, 0))
        self.coupling = 0.0
        # Set where the basis spans an invariant subspace: the wanted values there, and whether the
        # subspaces outside it have left them unchanged.
        self.values_in_subspace: Floats = np.zeros(0)
        self.is_confirmed = True
        self.next = self._random_vector()

    def extend(self) -> None:
        """Compute one product and extend the basis, after a restart if it is full."""
        if len(self.projected) == self.capacity:
            with uninterrupted():
                self._restart()
        product = self.H.rows(self.next.unsqueeze(0))[0].clone()
        with uninterrupted():
            self._add(product)

    def _add(self, product: Tensor) -> None:
        """Extend basis and projection by the next vector, given its product."""
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
            # The basis spans an invariant subspace: all other eigenvectors lie outside it.
            self.coupling = 0.0
            self._confirm()
            self.next = self._random_vector() if count < self.H.size else product
        self.residuals = self.coupling * np.abs(self.mixing[-1])

    @property
    def is_done(self) -> bool:
        """Whether all wanted pairs have converged, to a tenth of the tolerance."""
        if len(self.projected) < self.k or not self.is_confirmed:
            return False
        return bool(self._have_converged(_CAUTION * self.tol).all())

    def result(self) -> Eigenvalues:
        """Return the wanted pairs; the search cannot go on, as the basis is overwritten."""
        k = self.k
        self.basis.rotate(self.mixing[:, :k])
        values, residuals = self.values[:k], self.residuals[:k]
        return Eigenvalues(
            values=values,
            vectors=self.basis.first(k).T,
            residuals=residuals,
            errors=error_bounds(self.values, self.residuals, k),
            converged=self._have_converged(self.tol),
            products=self.products,
            which=self.which,
        )

    def _have_converged(self, tol: float) -> Flags:
        errors = error_bounds(self.values, self.residuals, self.k)
        return has_converged(self.values[: self.k], errors, tol, self._rounding())

    def _rounding(self) -> float:
        """Return the norm up to which the rest of a product is rounding error only."""
        return ROUNDING[self.H.dtype] * max(float(np.abs(self.values).max()), _TINY)

    def _confirm(self) -> None:
        """Check whether the last random vector's subspace has left the wanted values unchanged."""
        wanted, before = self.values[: self.k], self.values_in_subspace
        self.values_in_subspace = wanted
        self.is_confirmed = self.basis.count == self.H.size or (
            len(before) == self.k
            and np.allclose(wanted, before, rtol=self.tol, atol=self._rounding())
        )

    def _solve(self) -> None:
        """Find the Ritz values, the wanted end first, and their vectors in the basis (mixing)."""
        values, mixing = np.linalg.eigh(self.projected)
        order = np.argsort(_ORDER[self.which](values), kind="stable")
        self.values, self.mixing = values[order], mixing[:, order]

    def _restart(self) -> None:
        """Keep the wanted Ritz vectors and half of the spare ones; the next vector stays."""
        kept = min(self.k + _SPARE // 2, self.capacity - 1)
        self.basis.rotate(self.mixing[:, :kept])
        self.values, self.residuals = self.values[:kept], self.residuals[:kept]
        self.projected, self.mixing = np.diag(self.values), np.eye(kept)

    def _random_vector(self) -> Tensor:
        """Return a random unit vector orthogonal to the basis."""
        row = self.probes.sphere(1)[0]
        _, norm = self.basis.orthogonalise(row)
        return row.div_(norm)
