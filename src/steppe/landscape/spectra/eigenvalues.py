"""The outermost eigenvalues of an operator, by Lanczos' method with thick restarts.

The curvature report and studies find λ_max with it. The search is in ``_lanczos``. It stops by
``ThickRestartLanczos.should_stop``: when every error bound is a tenth of what ``tol`` allows, or
less, and no value has been missed; or when products turn out not to be symmetric. It also stops at
``max_products``. The bound, and the criterion ``has_converged``, are in ``_convergence``.
"""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from steppe._shared.array_types import Flags, Floats
from steppe._shared.progress import progress
from steppe._shared.validation import check_integer, check_number
from steppe.landscape._drawing import BLUE, axes_for
from steppe.landscape.operators.operator import Operator, check_operator
from steppe.landscape.result import Result
from steppe.landscape.spectra._lanczos import SPARE, ThickRestartLanczos
from steppe.landscape.spectra._orthonormal_basis import ROUNDING
from steppe.landscape.spectra._repeated_values import ORDER
from steppe.landscape.spectra._three_vectors import ThreeVectorLanczos

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Which = Literal["LM", "LA", "SA"]

# The basis may have more vectors as long as it is smaller than this: without restarts the method
# needs fewer products.
_BASIS_BYTES = 1 << 27


@dataclass(frozen=True, eq=False)
class Eigenvalues(Result):
    """The result of :func:`top_eigenvalues`.

    Attributes
    ----------
    values : ndarray
        The k eigenvalues, the wanted end of the spectrum first, in float64; shape (k,).
    vectors : Tensor
        Unit eigenvectors as columns, shape (size, k), in the operator's format, or (size, 0) where
        none were wanted; not in :meth:`to_dict`.
    residuals : ndarray
        r = ‖Hv − λv‖ of each pair, shape (k,): an eigenvalue of H lies no farther from λ.
    errors : ndarray
        Bound on the error of each value, shape (k,): min(r, R²/gap), closer than r as long as no
        eigenvalue in between has been missed. R is the residual of the value's whole cluster, that
        is of all pairs whose values are nearer than their residuals, and the gap is the cluster's
        distance from the other values found and from 0. Once the search looks for repeated
        values, the bound from before that round stands where it is smaller. It is no smaller than
        what the number format that products are computed in rounds of the largest eigenvalue.
    converged : ndarray
        Whether each value can be relied on; shape (k,). Its error is at most ``tol``·|λ|, or no
        more than rounding; it has been verified that none before it is missed, unless the caller
        asked for ``verify=False``; and products were those of a symmetric matrix. Otherwise
        ``reason`` says why.
    products : int
        How many products it took.
    which : str
        The end of the spectrum that was searched.
    asymmetry : float
        The largest component of a product that a symmetric operator's has not, relative to the
        largest eigenvalue.
    reason : str
        Why values have not converged; empty if all have.
    """

    left_out: ClassVar[tuple[str, ...]] = ("vectors",)

    values: Floats
    vectors: Tensor = field(repr=False)
    residuals: Floats
    errors: Floats
    converged: Flags
    products: int
    which: str
    asymmetry: float = 0.0
    reason: str = ""

    @property
    def is_done(self) -> bool:
        """Whether all values have converged."""
        return bool(self.converged.all())

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


_Search = ThickRestartLanczos | ThreeVectorLanczos

# Measured in float32 beside 1 and .7: a third of 3e-5 is missed in half of the searches, where the
# basis is exhausted up to rounding, and one of 1e-4 is not.
_RESOLVED = 100


def top_eigenvalues(
    H: Operator,
    k: int = 5,
    *,
    which: Which = "LM",
    tol: float = 1e-3,
    seed: int = 0,
    max_products: int | None = None,
    start: Tensor | None = None,
    verify: bool = True,
    vectors: bool = True,
) -> Eigenvalues:
    r"""Find the k outermost eigenvalues of a symmetric operator, with their vectors.

    It is Lanczos' method with full reorthogonalisation and inner products in float64. Where the
    basis exceeds both k + 10 vectors and 128 MiB, the method restarts with the best Ritz vectors
    (thick restart). It stops when every value's error bound is below ``tol``/10 of the value, and
    no eigenvalue has been missed; vectors are then right to about √(``tol``/10).
    Whether it got there is told by :attr:`Eigenvalues.converged` for each value, and by
    :attr:`Eigenvalues.is_done` for all.

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
    start : Tensor, optional
        Vector of shape (size,) near the first eigenvector, of any length, such as that of a similar
        matrix. The search begins with it plus a random part, so that the result is as right where
        it is near no eigenvector, or orthogonal to the wanted one. Default: a random vector.
    verify : bool, default True
        Whether the search goes on until no eigenvalue can be missed. False ends it as soon as
        values have converged, near ``start`` in half as many products; the values found are
        eigenvalues all the same, but larger ones may have been missed.
    vectors : bool, default True
        Whether vectors are wanted. False, for k = 1 alone, keeps three vectors in memory and not
        k + 10 or more, as large models need it: by the three-term recurrence, and without restarts.

    Returns
    -------
    Eigenvalues
        On Ctrl-C, or at ``max_products``, the present approximations, marked as not converged.

    Raises
    ------
    ValueError
        ``k``, ``which``, ``tol`` or ``max_products`` is out of range, a product is not finite,
        ``start`` has another shape, is zero or not finite, or ``vectors=False`` with k > 1.
    TypeError
        ``H`` is no operator, ``tol`` no number, ``k``, ``seed`` or ``max_products`` no integer,
        ``start`` no tensor of real numbers, or ``verify`` or ``vectors`` no bool.

    Notes
    -----
    A start vector that happens to be almost orthogonal to the outermost eigenvector lets the second
    eigenvalue converge first. The search goes on until any eigenvalue that lies outside by more
    than ``tol`` would have shown, but for 1 % of start vectors: about two products.

    From one start vector Lanczos' method finds one vector of each eigenvalue, however often that is
    repeated, as all of a linear layer under a squared error are. For k > 1 the search therefore
    goes on from another random vector in the complement of the basis, until a larger value shows
    there or it is certain, up to 1 %, that there is none.

    To verify that nothing is missed takes about as many products as a search from a random vector.
    So ``start`` alone saves none, and with ``verify=False`` it saves about half: 3 to 6 in the
    place of 8 to 10 for λ_max every 40 steps of training (docs/training.md has the measurement).

    Of a symmetric operator a product has no component along all but the last two basis vectors.
    Where it has more of them than the number format explains (``Operator.rounding``), data, model
    or derivatives are not what they should be: the search ends, and nothing has converged.

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
    check_operator(H)
    check_integer(k=k)
    check_number(tol=tol)
    if k > H.size:
        raise ValueError(f"k={k} must lie between 1 and the operator's size {H.size}")
    if which not in tuple(ORDER):
        raise ValueError(f"which={which!r} is not one of {', '.join(ORDER)}")
    if not 0 < tol < math.inf:
        raise ValueError(f"tol={tol} must be a finite number above 0")
    k = int(k)
    for name, value in {"verify": verify, "vectors": vectors}.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be True or False, got {value!r}")
    if not vectors and k > 1:
        raise ValueError(f"vectors=False finds one eigenvalue, and k={k}: expected k=1")
    if start is not None:
        start = _unit_start(H, start)
    limit = _limit(k, max_products)
    search: _Search
    if vectors:
        search = ThickRestartLanczos(H, k, which, tol, seed, _capacity(H, k), start, verify)
    else:
        search = ThreeVectorLanczos(H, which, tol, seed, start, verify)
    was_interrupted = False
    with progress(f"{k} eigenvalues", limit) as advance, H.held():
        try:
            while not search.should_stop and search.products < limit:
                search.extend()
                advance(1)
        except KeyboardInterrupt:
            if len(search.projected) < k:
                raise
            was_interrupted = True
        # The reason may take further products, of what is held.
        reason = "interrupted" if was_interrupted else search.reason()
    return _result(search, reason)


def _limit(k: int, max_products: int | None) -> int:
    if max_products is None:
        return 20 * k + 200
    check_integer(max_products=max_products)
    if max_products < k:
        raise ValueError(f"max_products={max_products} must be at least k={k}")
    return int(max_products)


def _capacity(H: Operator, k: int) -> int:
    """Return how many vectors a basis has before the search restarts."""
    room = _BASIS_BYTES // max(H.size * H.dtype.itemsize, 1)
    return min(H.size, max(k + SPARE, room))


def _unit_start(H: Operator, start: Tensor) -> Tensor:
    if not isinstance(start, Tensor) or start.is_complex():
        got = start.dtype if isinstance(start, Tensor) else type(start).__name__
        raise TypeError(f"start must be a tensor of real numbers, got {got}")
    if start.shape != (H.size,):
        raise ValueError(f"start has shape {tuple(start.shape)}, expected ({H.size},)")
    vector = start.detach().to(H.device, torch.float64)
    norm = float(vector.norm())
    if not 0 < norm < math.inf:
        raise ValueError(f"start must be finite and not zero, and has the norm {norm}")
    return (vector / norm).to(H.dtype)


def _result(search: _Search, reason: str) -> Eigenvalues:
    """Return the wanted pairs of a search, which cannot go on: its basis is overwritten."""
    k = search.k
    values, residuals = search.values[:k], search.residuals[:k]
    # The bounds hold for the matrix whose products were computed: H, rounded.
    largest = float(np.abs(search.values).max())
    errors = np.maximum(search.errors(), search.symmetry.precision * largest)
    # Below what vectors resolve beside the largest, another eigenvalue of that size may be missed.
    resolved = _RESOLVED * ROUNDING[search.H.dtype] * largest
    if len(search.values) < search.H.size:
        errors = np.where(np.abs(values) < resolved, np.maximum(errors, resolved), errors)
    converged = search.converged()
    return Eigenvalues(
        values=values,
        vectors=_vectors(search),
        residuals=residuals,
        errors=errors,
        converged=converged,
        products=search.products,
        which=search.which,
        asymmetry=search.symmetry.asymmetry,
        reason="" if converged.all() else reason,
    )


def _vectors(search: _Search) -> Tensor:
    """Return the wanted vectors as columns, in the basis' memory; none where none were kept."""
    if isinstance(search, ThreeVectorLanczos):
        return search.probes.like().new_empty(search.H.size, 0)
    search.basis.rotate(search.mixing[:, : search.k])
    return search.basis.first(search.k).T
