"""The trace of an operator, from products with random vectors, with its standard error."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from steppe._shared.progress import progress
from steppe._shared.validation import check_integer, check_number
from steppe.landscape.operators.operator import Operator, check_operator
from steppe.landscape.result import Result
from steppe.landscape.spectra._checked_products import NOT_FINITE, CheckedProducts
from steppe.landscape.spectra._left_out_probes import (
    SHARED_SUBSPACE,
    LeftOutProbes,
    extend_basis,
)
from steppe.landscape.spectra._orthonormal_basis import OrthonormalBasis
from steppe.landscape.spectra._probes import Probes, blocks

TraceMethod = Literal["hutch++", "hutchinson", "xtrace"]

_TINY = torch.finfo(torch.float64).tiny
# Of few samples the spread may be small by chance, and a search that stops where it is small finds
# these. In steps of one sample, over flat and decaying spectra of 200 values, it ended more than
# four standard errors off in 13 to 20 of 100 runs where two samples were enough, in up to 4 with
# eight, and in up to 2 with sixteen, which small operators take at once.
_LEAST_SAMPLES = 16


@dataclass(frozen=True)
class Trace(Result):
    """The result of :func:`trace`.

    Attributes
    ----------
    value : float
        The estimated trace, in the eigenvalues' unit.
    stderr : float
        Standard error of the estimate, from the spread of its samples, and no smaller than what the
        number format that products are computed in rounds of ``value`` and the largest eigenvalue.
    products : int
        How many products it took.
    method : str
        The method of estimation.
    converged : bool
        Whether ``tol`` was reached, or if none was given, whether all products were computed; and
        products were those of a symmetric matrix.
    asymmetry : float
        How far they were from these, relative to the largest product.
    reason : str
        Why it has not converged; empty if it has.
    """

    value: float
    stderr: float
    products: int
    method: str
    converged: bool
    asymmetry: float = 0.0
    reason: str = ""


@dataclass(frozen=True)
class _Estimate:
    value: float
    stderr: float
    #: Whether ``stderr`` can be relied on: it is that of enough samples, or nothing is estimated.
    is_settled: bool
    #: The part of ``stderr`` that more samples do not lower.
    rounding: float = 0.0


def trace(
    H: Operator,
    *,
    method: TraceMethod = "hutch++",
    products: int = 99,
    tol: float | None = None,
    seed: int = 0,
) -> Trace:
    r"""Estimate the trace of a symmetric operator, with its standard error.

    Parameters
    ----------
    H : Operator
        A symmetric operator, such as :func:`~steppe.landscape.hessian` returns.
    method : str, default "hutch++"
        "hutchinson": the mean of xᵀHx over random sign vectors x; its error falls as 1/√products.
        "hutch++": the exact trace over the subspace that a third of the products span, and
        Hutchinson's estimate of the rest; its error falls as 1/products where the spectrum decays.
        "xtrace": the same idea, but each probe in turn is left out of the subspace and used for the
        rest. It is the most exact. As its samples share their subspace, its standard error is 4/3
        of what their spread says, which is mostly a little too much. "hutch++" keeps a third of
        ``products`` vectors in memory, "xtrace" twice ``products``.
    products : int, default 99
        Maximum number of products; at least 2, for "hutch++" 6, for "xtrace" 4.
    tol : float, optional
        Stop as soon as the standard error is at most ``tol``·\|value\|, and that of at least 16
        samples. Default: take all products.
    seed : int, default 0
        Seed of the random vectors: the same seed gives the same result.

    Returns
    -------
    Trace
        On Ctrl-C the estimate from the products done so far, with ``converged=False``.

    Raises
    ------
    ValueError
        An argument is out of range or unknown, or a product is not finite.
    TypeError
        ``H`` is no operator, ``tol`` no number, or ``products`` or ``seed`` no integer.

    References
    ----------
    Hutchinson, *A stochastic estimator of the trace of the influence matrix*, Communications in
    Statistics 18 (1989); Meyer, Musco, Musco and Woodruff, *Hutch++*, arXiv 2010.09649; Epperly,
    Tropp and Webber, *XTrace*, arXiv 2301.07825.

    Examples
    --------
    >>> diagonal = torch.arange(1.0, 101.0)
    >>> found = trace(Operator(100, lambda rows: rows * diagonal), method="hutchinson")
    >>> round(found.value, 3), found.products
    (5050.0, 99)
    """
    check_operator(H)
    if method not in tuple(_METHODS):
        raise ValueError(f"method={method!r} is not one of {', '.join(_METHODS)}")
    check_integer(products=products)
    products, least = int(products), _LEAST[method]
    if products < least:
        raise ValueError(f"products={products} must be at least {least} for method={method!r}")
    if tol is not None:
        check_number(tol=tol)
    if tol is not None and not 0 < tol < math.inf:
        raise ValueError(f"tol={tol} must be a finite number above 0")
    before = H.products
    last: _Estimate | None = None
    reason = "" if tol is None else f"the standard error is above tol={tol}: raise products"
    checked = CheckedProducts(H)
    with progress(f"trace, {method}", products) as advance, H.held():
        try:
            done = before
            for estimate in _METHODS[method](checked.operator, products, Probes(H, seed)):
                last = _with_rounding(estimate, H, checked.largest)
                advance(H.products - done)
                done = H.products
                if tol is not None and not (reason := _not_reached(last, tol)):
                    break
        except KeyboardInterrupt:
            if last is None:
                raise
            reason = "interrupted"
        taken = H.products - before
        symmetry = checked.symmetry
        if symmetry.is_broken:
            reason = symmetry.reason(Probes(H, seed).sphere(1)[0])
    assert last is not None
    return Trace(last.value, last.stderr, taken, method, not reason, symmetry.asymmetry, reason)


def _not_reached(found: _Estimate, tol: float) -> str:
    """Return why an estimate is not as exact as asked for; empty if it is."""
    most = tol * abs(found.value)
    if found.rounding > most:
        return f"rounding alone is above tol={tol}: take a wider number format, as model.double()"
    if not found.stderr <= most:
        return f"the standard error is above tol={tol}: raise products"
    if not found.is_settled:
        return f"fewer than {_LEAST_SAMPLES} samples do not tell the standard error: raise products"
    return ""


def _with_rounding(found: _Estimate, H: Operator, largest: float) -> _Estimate:
    """Add to an estimate's error what products have been rounded by.

    Raises
    ------
    ValueError
        The estimate is not finite.
    """
    if not math.isfinite(found.value):
        raise ValueError(NOT_FINITE)
    rounding = H.precision * max(abs(found.value), largest)
    return replace(found, stderr=math.hypot(found.stderr, rounding), rounding=rounding)


def _hutchinson(H: Operator, products: int, probes: Probes) -> Iterator[_Estimate]:
    samples = torch.zeros(0, dtype=torch.float64, device="cpu")
    for count in blocks(H, products):
        rows = probes.signs(count)
        samples = torch.cat([samples, _quadratic_forms(rows, H.rows(rows)).cpu()])
        yield _mean(samples)


def _hutch_plus_plus(H: Operator, products: int, probes: Probes) -> Iterator[_Estimate]:
    third = min(products // 3, H.size)
    span = OrthonormalBasis(probes.like(), kept=third)
    for count in blocks(H, third):
        extend_basis(span, H.rows(probes.signs(count)), probes)
    basis = span.first(third)
    inside = 0.0
    for piece in torch.split(basis, max(blocks(H, third), default=1)):
        inside += _quadratic_forms(piece, H.rows(piece)).sum().item()
    samples = torch.zeros(0, dtype=torch.float64, device="cpu")
    for count in blocks(H, products - 2 * third):
        rows = _orthogonal_part(probes.signs(count), basis)
        samples = torch.cat([samples, _quadratic_forms(rows, H.rows(rows)).cpu()])
        outside = _mean(samples)
        is_settled = outside.is_settled or third == H.size
        yield _Estimate(inside + outside.value, outside.stderr, is_settled)


def _xtrace(H: Operator, products: int, probes: Probes) -> Iterator[_Estimate]:
    """Leave each probe in turn out of the subspace of all images, and use it for the rest."""
    if H.size == 1:
        # Without its only probe there is no subspace.
        yield from _hutchinson(H, 2, probes)
        return
    most = min(products // 2, H.size)
    left_out, radius = LeftOutProbes(H, probes, most), math.sqrt(H.size)
    for count in blocks(H, most):
        left_out.extend(radius * probes.sphere(count))
        if len(left_out) > 1:
            yield _leave_one_out(left_out)


def _leave_one_out(probes: LeftOutProbes) -> _Estimate:
    tests, basis, products = probes.tests, probes.basis, probes.products_of_basis
    count, size = tests.shape
    inner = (basis @ products.T).double()
    coefficients = (basis @ tests.T).double()
    left, is_needed = probes.own_directions()
    kept = coefficients - left * (left * coefficients).sum(0)
    weights = kept.T.to(tests.dtype)
    outside, image = tests - weights @ basis, probes.images - weights @ products
    # The part of a probe outside the subspace is scaled to the length of a random vector there,
    # which XTrace's authors found to lower the variance.
    dimensions = size - count + is_needed.double()
    scale = dimensions / outside.double().square().sum(1).clamp(min=_TINY)
    whole = inner.trace() - (left * (inner @ left)).sum(0)
    found = _mean((whole + scale * _quadratic_forms(outside, image)).cpu())
    is_settled = found.is_settled or count == size
    return _Estimate(found.value, SHARED_SUBSPACE * found.stderr, is_settled)


def _orthogonal_part(rows: Tensor, basis: Tensor) -> Tensor:
    """Return the rows' parts orthogonal to a subspace, given by an orthonormal basis."""
    return rows - (rows @ basis.T) @ basis


def _quadratic_forms(rows: Tensor, images: Tensor) -> Tensor:
    """Return each row's inner product with its image, xᵀHx, in float64."""
    pairs = zip(rows, images, strict=True)
    return torch.stack([row.double() @ image.double() for row, image in pairs])


def _mean(samples: Tensor) -> _Estimate:
    count = len(samples)
    spread = samples.std().item() / math.sqrt(count) if count > 1 else math.nan
    return _Estimate(samples.mean().item(), spread, count >= _LEAST_SAMPLES)


_METHODS = {"hutch++": _hutch_plus_plus, "hutchinson": _hutchinson, "xtrace": _xtrace}
_LEAST = {"hutch++": 6, "hutchinson": 2, "xtrace": 4}
