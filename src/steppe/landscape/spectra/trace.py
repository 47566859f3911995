"""The trace of an operator, from products with random vectors."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from steppe._shared.progress import progress
from steppe.landscape._result import Result
from steppe.landscape.operators.operator import Operator
from steppe.landscape.spectra._lanczos import ROUNDING, Basis
from steppe.landscape.spectra._probes import Probes, blocks

Method = Literal["hutch++", "hutchinson", "xtrace"]

_TINY = torch.finfo(torch.float64).tiny


@dataclass(frozen=True)
class Trace(Result):
    """What :func:`trace` estimated.

    Attributes
    ----------
    value : float
        The estimate.
    stderr : float
        Its standard error, from the spread of its parts.
    products : int
        How many products it took.
    method : str
        How it was estimated.
    converged : bool
        Whether ``tol`` was reached; without one, whether all products were taken.
    """

    value: float
    stderr: float
    products: int
    method: str
    converged: bool


@dataclass(frozen=True)
class _Estimate:
    value: float
    stderr: float


def trace(
    H: Operator,
    *,
    method: Method = "hutch++",
    products: int = 99,
    tol: float | None = None,
    seed: int = 0,
) -> Trace:
    r"""Estimate the trace of a symmetric operator, with its standard error.

    Parameters
    ----------
    H : Operator
        Such as :func:`hessian` returns.
    method : str
        "hutchinson": the mean of xᵀHx over random signs x; its error falls as 1/√products.
        "hutch++": the trace over the range of a third of the products exactly, the rest by
        Hutchinson; its error falls as 1/products. "xtrace": the same idea, each probe in turn left
        out of the range and tested on the rest; it is the most exact, and what it says of its error
        about a quarter too small, as its parts share their range. The two keep a third or twice
        ``products`` vectors in memory.
    products : int, default 99
        How many products to take at the most; at least 2, for "hutch++" 6, for "xtrace" 4.
    tol : float, optional
        Stop as soon as the standard error is at most ``tol``·\|value\|.
    seed : int
        Same seed, same answer.

    Returns
    -------
    Trace
        On Ctrl-C what there is so far, marked as not converged.

    Raises
    ------
    ValueError
        An argument is out of range, or a product is not finite.

    References
    ----------
    Hutchinson (1989); Meyer, Musco, Musco and Woodruff, *Hutch++*, arXiv 2010.09649; Epperly, Tropp
    and Webber, *XTrace*, arXiv 2301.07825.

    Examples
    --------
    >>> diagonal = torch.arange(1.0, 101.0)
    >>> found = trace(Operator(100, lambda rows: rows * diagonal), method="hutchinson")
    >>> round(found.value, 3), found.products
    (5050.0, 99)
    """
    if method not in _METHODS:
        raise ValueError(f"method={method!r} is not one of {', '.join(_METHODS)}")
    least = _LEAST[method]
    if products < least:
        raise ValueError(f"products={products} must be at least {least} for method={method!r}")
    if tol is not None and not tol > 0:
        raise ValueError(f"tol={tol} must be above 0")
    before = H.products
    last: _Estimate | None = None
    converged = False
    with progress(f"trace, {method}", products) as advance, H.held():
        try:
            done = before
            for last in _METHODS[method](H, products, Probes(H, seed)):
                advance(H.products - done)
                done = H.products
                if not math.isfinite(last.value):
                    raise ValueError("a product is not finite: the operator overflows")
                if tol is not None and last.stderr <= tol * abs(last.value):
                    converged = True
                    break
            else:
                converged = tol is None
        except KeyboardInterrupt:
            if last is None:
                raise
    assert last is not None
    return Trace(last.value, last.stderr, H.products - before, method, converged)


def _hutchinson(H: Operator, products: int, probes: Probes) -> Iterator[_Estimate]:
    samples = torch.zeros(0, dtype=torch.float64)
    for count in blocks(H, products):
        rows = probes.signs(count)
        samples = torch.cat([samples, _forms(rows, H.rows(rows)).cpu()])
        yield _mean(samples)


def _hutch_plus_plus(H: Operator, products: int, probes: Probes) -> Iterator[_Estimate]:
    third = min(products // 3, H.size)
    span = Basis(probes.like(), kept=third)
    for count in blocks(H, third):
        _extend(span, H.rows(probes.signs(count)), probes)
    basis = span.first(third)
    inside = 0.0
    for piece in torch.split(basis, max(blocks(H, third), default=1)):
        inside += _forms(piece, H.rows(piece)).sum().item()
    samples = torch.zeros(0, dtype=torch.float64)
    for count in blocks(H, products - 2 * third):
        rows = _outside(probes.signs(count), basis)
        samples = torch.cat([samples, _forms(rows, H.rows(rows)).cpu()])
        outside = _mean(samples)
        yield _Estimate(inside + outside.value, outside.stderr)


def _xtrace(H: Operator, products: int, probes: Probes) -> Iterator[_Estimate]:
    """Leave each probe ω out of the range Q of all images in turn, and test the rest on it.

    With R = QᵀY and s the normalised column of R⁻ᵀ, the range without ω is Q(I − ssᵀ)Qᵀ.
    """
    tests = images = products_of_basis = probes.signs(0)
    most = min(products // 2, H.size)
    span, radius = Basis(probes.like(), kept=most), math.sqrt(H.size)
    for count in blocks(H, most):
        new = radius * probes.sphere(count)
        new_images = H.rows(new)
        _extend(span, new_images, probes)
        tests, images = torch.cat([tests, new]), torch.cat([images, new_images])
        basis = span.first(len(tests))
        products_of_basis = torch.cat([products_of_basis, H.rows(basis[-count:])])
        if len(tests) > 1:
            yield _left_out(tests, images, basis, products_of_basis)


def _left_out(tests: Tensor, images: Tensor, basis: Tensor, products: Tensor) -> _Estimate:
    count, size = tests.shape
    inner = (basis @ products.T).double()
    coefficients = (basis @ tests.T).double()
    left, is_needed = _directions_of_one(basis, images)
    kept = coefficients - left * (left * coefficients).sum(0)
    weights = kept.T.to(tests.dtype)
    outside, image = tests - weights @ basis, images - weights @ products
    # A test vector's share outside the range is that of a random one there.
    dimensions = size - count + is_needed.double()
    scale = dimensions / outside.double().square().sum(1).clamp(min=_TINY)
    whole = inner.trace() - (left * (inner @ left)).sum(0)
    return _mean((whole + scale * _forms(outside, image)).cpu())


def _directions_of_one(basis: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return what each image alone adds to the range, as columns; 0 where others span it too."""
    triangle = (basis @ images.T).double()
    inverse = torch.linalg.pinv(triangle, rtol=100 * torch.finfo(images.dtype).eps)
    is_needed = (inverse @ triangle).diagonal() > 0.99
    left = inverse.T * is_needed
    return left / left.norm(dim=0).clamp(min=_TINY), is_needed


def _extend(basis: Basis, images: Tensor, probes: Probes) -> None:
    """Add to a basis what each image has outside it; where that is nothing, a random direction."""
    for image in images:
        row = image.clone()
        least = ROUNDING[row.dtype] * float(torch.linalg.vector_norm(row, dtype=torch.float64))
        _, left = basis.orthogonalise(row)
        if left <= least:
            # What rounding leaves may lie in the basis: its directions would count twice.
            row = probes.sphere(1)[0]
            _, left = basis.orthogonalise(row)
        basis.append(row.div_(left))


def _outside(rows: Tensor, basis: Tensor) -> Tensor:
    """Take away what lies in a subspace."""
    return rows - (rows @ basis.T) @ basis


def _forms(rows: Tensor, images: Tensor) -> Tensor:
    """Return each row's inner product with its image, in float64."""
    pairs = zip(rows, images, strict=True)
    return torch.stack([row.double() @ image.double() for row, image in pairs])


def _mean(samples: Tensor) -> _Estimate:
    count = len(samples)
    spread = samples.std().item() / math.sqrt(count) if count > 1 else math.nan
    return _Estimate(samples.mean().item(), spread)


_METHODS = {"hutch++": _hutch_plus_plus, "hutchinson": _hutchinson, "xtrace": _xtrace}
_LEAST = {"hutch++": 6, "hutchinson": 2, "xtrace": 4}
