"""How far Ritz values are from eigenvalues, and when that is near enough.

The search in ``_lanczos`` asks whether the values it has found can be relied on.
"""

import numpy as np

from steppe._shared.array_types import Flags, Floats

_TINY = 1e-300


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
    """Bound how far each of the first k Ritz values is from an eigenvalue: min(r, R²/gap).

    r is the residual of the pair, and R that of its cluster: of all pairs whose values are nearer
    than their residuals, as repeated eigenvalues are. The gap is the cluster's distance from the
    other Ritz values, each less its own residual, and from 0, where most eigenvalues of a loss lie.
    The bound is Kato and Temple's (Parlett, *The Symmetric Eigenvalue Problem*, 11.7).

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
    >>> error_bounds(np.array([5.0, 5.0, 1.0]), np.array([0.1, 0.0, 0.0]), k=2).round(6)
    array([0.0025, 0.    ])
    """
    wanted, r = values[:k], residuals[:k]
    distances = np.abs(wanted[:, None] - values)
    is_near = distances <= r[:, None] + residuals
    np.fill_diagonal(is_near, True)
    R = np.sqrt((is_near * residuals**2).sum(axis=1))
    # With few Ritz values the others say little about the spectrum: 0 stands for what is not found.
    gaps = np.where(is_near, np.inf, distances - residuals).min(axis=1)
    gaps = np.minimum(gaps, np.abs(wanted))
    bounds: Floats = np.minimum(r, R * R / np.maximum(np.maximum(gaps, R), _TINY))
    return bounds
