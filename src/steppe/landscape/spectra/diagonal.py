"""The diagonal of an operator, from products with random vectors, with standard errors.

It is the curvature along each parameter alone, which Adam's second moments stand for.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from steppe._shared.progress import progress
from steppe._shared.validation import check_integer
from steppe.landscape.operators.operator import Operator, check_operator
from steppe.landscape.result import Result
from steppe.landscape.spectra._checked_products import CheckedProducts
from steppe.landscape.spectra._left_out_probes import SHARED_SUBSPACE, LeftOutProbes
from steppe.landscape.spectra._probes import Probes, blocks

DiagonalMethod = Literal["xdiag", "hutchinson"]

_LEAST = {"xdiag": 4, "hutchinson": 2}


@dataclass(frozen=True, eq=False)
class Diagonal(Result):
    """The result of :func:`diagonal`.

    Attributes
    ----------
    values, stderr : Tensor
        The estimated elements h_ii and their standard errors, of shape (size,), in float64; not in
        :meth:`to_dict`.
    root_trace : float
        Σ_i √max(h_ii, 0), tr(diag(H)^½), without the bias that errors of h_ii give their roots.
    root_trace_error : float
        Its standard error together with the whole of the bias that was taken out.
    products : int
        How many products it took.
    method : str
        The method of estimation.
    converged : bool
        Whether all products were computed, and were those of a symmetric matrix.
    asymmetry : float
        How far they were from these, relative to the largest product.
    reason : str
        Why it has not converged; empty if it has.
    """

    left_out: ClassVar[tuple[str, ...]] = ("values", "stderr")

    values: Tensor = field(repr=False)
    stderr: Tensor = field(repr=False)
    root_trace: float
    root_trace_error: float
    products: int
    method: str
    converged: bool
    asymmetry: float = 0.0
    reason: str = ""


def diagonal(
    H: Operator, *, method: DiagonalMethod = "xdiag", products: int = 100, seed: int = 0
) -> Diagonal:
    r"""Estimate the diagonal of a symmetric operator, and the sum of its elements' roots.

    Adam with small learning rates moves along minima towards a smaller tr(diag(H)^½), as SGD moves
    towards a smaller trace.

    Parameters
    ----------
    H : Operator
        A symmetric operator, such as :func:`~steppe.landscape.hessian` returns.
    method : str, default "xdiag"
        "hutchinson": the mean of ω ⊙ Hω over random signs ω. The variance of an element is the sum
        of the squares beside it in its row, over the number of products; ``products`` vectors are
        kept in memory. "xdiag": the exact diagonal of the part of H in the subspace of all Hω but
        one, and by that ω that of the rest, averaged; far more exact where the spectrum decays. It
        keeps twice ``products`` vectors. As its samples share their subspace, its standard errors
        are 4/3 of what their spread says.
    products : int, default 100
        Number of products; at least 2, for "xdiag" 4.
    seed : int, default 0
        Seed of the random vectors: the same seed gives the same result.

    Returns
    -------
    Diagonal
        On Ctrl-C the estimate from the products done so far, with ``converged=False``.

    Raises
    ------
    ValueError
        An argument is out of range or unknown, or a product is not finite.
    TypeError
        ``H`` is no operator, or ``products`` or ``seed`` no integer.
    KeyboardInterrupt
        Ctrl-C came before there were two samples.

    References
    ----------
    Bekas, Kokiopoulou and Saad, *An estimator for the diagonal of a matrix*, Applied Numerical
    Mathematics 57 (2007); Epperly, Tropp and Webber, *XTrace*, arXiv 2301.07825, on XDiag. On what
    Adam makes smaller: arXiv 2511.02773.

    Examples
    --------
    >>> matrix = torch.tensor([[4.0, 1.0], [1.0, 9.0]], dtype=torch.float64)
    >>> H = Operator(2, lambda rows: rows @ matrix, dtype=torch.float64)
    >>> found = diagonal(H, products=4)
    >>> found.values.round(), round(found.root_trace, 6)
    (tensor([4., 9.], dtype=torch.float64), 5.0)
    """
    check_operator(H)
    if method not in tuple(_LEAST):
        raise ValueError(f"method={method!r} is not one of {', '.join(_LEAST)}")
    check_integer(products=products)
    if products < _LEAST[method]:
        raise ValueError(
            f"products={products} must be at least {_LEAST[method]} for method={method!r}"
        )
    before = H.products
    checked, probes = CheckedProducts(H), Probes(H, seed)
    samples = _METHODS[method](checked.operator, int(products), probes)
    reason = ""
    with progress(f"diagonal, {method}", int(products)) as advance, H.held():
        try:
            done = before
            for count in samples.blocks:
                samples.extend(probes.signs(count))
                advance(H.products - done)
                done = H.products
        except KeyboardInterrupt:
            if samples.count < 2:
                raise
            reason = "interrupted"
        taken = H.products - before
        if checked.symmetry.is_broken:
            reason = checked.symmetry.reason(Probes(H, seed).sphere(1)[0])
    found = _summary(samples, H.precision)
    return Diagonal(*found, taken, method, not reason, checked.symmetry.asymmetry, reason)


class _Hutchinson:
    """Samples ω ⊙ Hω."""

    factor = 1.0

    def __init__(self, H: Operator, products: int, probes: Probes) -> None:
        self._H, self.blocks = H, blocks(H, products)
        self._kept: list[Tensor] = []

    @property
    def count(self) -> int:
        return sum(map(len, self._kept))

    def extend(self, signs: Tensor) -> None:
        self._kept.append(signs * self._H.rows(signs))

    def __iter__(self) -> Iterator[Tensor]:
        for block in self._kept:
            yield from block.double()


class _XDiag:
    """Samples diag(PH) + ω ⊙ (I − P)Hω, P the projection onto all images but that of ω."""

    factor = SHARED_SUBSPACE

    def __init__(self, H: Operator, products: int, probes: Probes) -> None:
        most = min(products // 2, H.size)
        self.blocks = blocks(H, most)
        self._left_out = LeftOutProbes(H, probes, most)

    @property
    def count(self) -> int:
        return len(self._left_out)

    def extend(self, signs: Tensor) -> None:
        self._left_out.extend(signs)

    def __iter__(self) -> Iterator[Tensor]:
        probes = self._left_out
        basis, images = probes.basis, probes.products_of_basis
        inside = torch.zeros_like(basis[0], dtype=torch.float64)
        for row, image in zip(basis, images, strict=True):
            inside += row.double() * image
        if len(basis) == len(inside):
            # The basis is of the whole space: nothing lies outside.
            yield from inside.expand(len(basis), -1)
            return
        directions, _ = probes.own_directions()
        for own, signs, image in zip(directions.T, probes.tests, probes.images, strict=True):
            # What P lacks of the whole projection is one direction, along which Hω has all that
            # lies outside of P.
            direction = own.to(basis.dtype) @ basis
            outside = direction * (direction @ image)
            yield inside - direction.double() * (own.to(images.dtype) @ images) + signs * outside


_METHODS: dict[str, Callable[[Operator, int, Probes], _Hutchinson | _XDiag]] = {
    "xdiag": _XDiag,
    "hutchinson": _Hutchinson,
}


class _Summary(NamedTuple):
    values: Tensor
    stderr: Tensor
    root_trace: float
    root_trace_error: float


def _summary(samples: _Hutchinson | _XDiag, precision: float) -> _Summary:
    """Return the samples' mean, its error, and the sum of roots by a jackknife over samples."""
    count = samples.count
    total = square = torch.zeros((), dtype=torch.float64)
    for sample in samples:
        total, square = total + sample, square + sample.square()
    mean = total / count
    # Of all differences of nearly equal numbers: no smaller than what products were rounded by.
    variance = (square / count - mean.square()).clamp(min=0.0) / (count - 1)
    stderr = samples.factor * variance.sqrt()
    stderr = torch.hypot(stderr, precision * (square / count).sqrt())
    root = _sum_of_roots(mean)
    without = torch.tensor([_sum_of_roots((total - each) / (count - 1)) for each in samples])
    bias = (count - 1) * (float(without.mean()) - root)
    spread = samples.factor * math.sqrt((count - 1) * float(without.var(correction=0)))
    return _Summary(mean, stderr, max(root - bias, 0.0), math.hypot(spread, bias))


def _sum_of_roots(values: Tensor) -> float:
    return float(values.clamp(min=0.0).sqrt().sum())
