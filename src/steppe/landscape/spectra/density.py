"""The density of an operator's eigenvalues, by stochastic Lanczos quadrature."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from steppe._shared.array_types import Floats
from steppe._shared.progress import progress
from steppe.landscape._result import Result, axes_for
from steppe.landscape.operators.operator import Operator
from steppe.landscape.spectra._lanczos import ROUNDING, Basis
from steppe.landscape.spectra._probes import Probes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Probes that advance together share forward passes and gradients, and keep all their vectors.
_TOGETHER_BYTES = 1 << 28

# Where Gaussians end, in bandwidths: 1e-9 of each is cut off. And how finely they are drawn: sums
# over equal steps of half a bandwidth are integrals to 1e-30.
_REACH = 6.0
_POINTS_PER_BANDWIDTH = 4
_POINTS, _MOST_POINTS = 1001, 200_001


@dataclass(frozen=True, eq=False)
class Density(Result):
    """What :func:`density` estimated.

    Attributes
    ----------
    grid : ndarray
        Eigenvalues, evenly spaced, shape (points,).
    density : ndarray
        Their density, 1 over an eigenvalue's unit; its integral over the grid is 1.
    stderr : ndarray
        Standard error of the density over probes; NaN with one probe.
    nodes, weights : ndarray
        The quadrature of each probe, shape (probes, steps): eigenvalues of its tridiagonal matrix,
        and the probe's share along each. Rows that ended early are filled up with weight 0.
    bandwidth : float
        Standard deviation of the Gaussian that stands for each node.
    size : int
        Number of eigenvalues.
    products : int
        How many products it took.
    converged : bool
        Whether all probes took all steps, or exhausted the operator.
    """

    grid: Floats
    density: Floats
    stderr: Floats
    nodes: Floats
    weights: Floats
    bandwidth: float
    size: int
    products: int
    converged: bool

    def moment(self, power: int) -> tuple[float, float]:
        """Return the mean of the eigenvalues' powers, and its standard error over probes."""
        each = (self.weights * self.nodes**power).sum(axis=1)
        error = each.std(ddof=1) / math.sqrt(len(each)) if len(each) > 1 else math.nan
        return float(each.mean()), float(error)

    @property
    def trace(self) -> float:
        """The trace: ``size`` times the first moment."""
        return self.size * self.moment(1)[0]

    @property
    def trace_stderr(self) -> float:
        """Standard error of the trace over probes."""
        return self.size * self.moment(1)[1]

    def plot(self, axes: "Axes | None" = None) -> "Axes":
        """Draw the density on a logarithmic scale, with two standard errors about it."""
        axes = axes_for(axes, "Spectral density")
        # Below one eigenvalue's own peak there is nothing to see.
        floor = 1e-2 / (self.size * self.bandwidth * math.sqrt(2.0 * math.pi))
        low, high = self.density - 2 * self.stderr, self.density + 2 * self.stderr
        if np.isfinite(high).all():
            axes.fill_between(
                self.grid, np.maximum(low, floor), np.maximum(high, floor),
                color="#0072B2", alpha=0.2, lw=0,
            )  # fmt: skip
        axes.plot(self.grid, np.maximum(self.density, floor), color="#0072B2", lw=1.4)
        axes.set_yscale("log")
        axes.set_ylim(bottom=floor)
        axes.set_xlabel("eigenvalue")
        axes.set_ylabel("density")
        return axes


def density(
    H: Operator,
    *,
    probes: int = 10,
    steps: int = 60,
    bandwidth: float | None = None,
    seed: int = 0,
) -> Density:
    r"""Estimate how the eigenvalues of a symmetric operator are distributed.

    Each random unit vector's own spectrum is that of a Lanczos run of some steps from it, with full
    reorthogonalisation; the mean over vectors is the operator's.

    .. math:: φ(λ) = \frac{1}{\text{probes}} \sum_j \sum_i w_{ji} \, N(λ; θ_{ji}, σ^2)

    Parameters
    ----------
    H : Operator
        Such as :func:`hessian` returns.
    probes : int, default 10
        Random vectors; at least 1. The error falls as 1/√probes.
    steps : int, default 60
        Lanczos steps of each; at least 2. As many vectors are kept.
    bandwidth : float, optional
        σ; positive. Default: a hundredth of the range that was found.
    seed : int
        Same seed, same answer.

    Returns
    -------
    Density
        On Ctrl-C what there is so far, marked as not converged.

    Raises
    ------
    ValueError
        An argument is out of range, or a product is not finite.

    References
    ----------
    Lin, Saad and Yang, *Approximating spectral densities of large matrices*, SIAM Review 58 (2016);
    Ghorbani, Krishnan and Xiao, arXiv 1901.10159.

    Examples
    --------
    >>> diagonal = torch.cat([torch.zeros(90), torch.ones(10)])
    >>> found = density(Operator(100, lambda rows: rows * diagonal), probes=50)
    >>> abs(found.trace - 10) < 3 * found.trace_stderr
    True
    """
    for name, value, least in (("probes", probes, 1), ("steps", steps, 2)):
        if value < least:
            raise ValueError(f"{name}={value} must be at least {least}")
    if bandwidth is not None and not bandwidth > 0:
        raise ValueError(f"bandwidth={bandwidth} must be above 0")
    before, source = H.products, Probes(H, seed)
    runs: list[_Run] = []
    steps = min(steps, H.size)
    together = max(1, _TOGETHER_BYTES // (steps * H.size * H.dtype.itemsize))
    complete = True
    with progress("density", probes * steps) as advance, H.held():
        try:
            while len(runs) < probes:
                new = [_Run(H, row) for row in source.sphere(min(together, probes - len(runs)))]
                for number in range(steps):
                    _advance(H, [run for run in new if not run.is_exhausted])
                    if number == 0:
                        runs += new
                    advance(len(new))
                for run in new:
                    run.release()
        except KeyboardInterrupt:
            if not runs:
                raise
            complete = False
    return _density(H, runs, bandwidth, H.products - before, complete)


class _Run:
    """One probe's basis and tridiagonal matrix."""

    def __init__(self, H: Operator, start: Tensor) -> None:
        self.next = start.clone()
        self.basis = Basis(start)
        self.diagonal: list[float] = []
        self.beside: list[float] = []
        self.smallest = ROUNDING[H.dtype]
        self.is_exhausted = False

    def extend(self, product: Tensor) -> None:
        self.basis.append(self.next)
        components, left = self.basis.orthogonalise(product)
        self.diagonal.append(components[-1].item())
        if not math.isfinite(self.diagonal[-1]):
            raise ValueError("a product is not finite: the operator overflows")
        scale = max(map(abs, (*self.diagonal, *self.beside)))
        self.is_exhausted = left <= self.smallest * scale
        if not self.is_exhausted:
            self.beside.append(left)
            self.next = product.div_(left)

    def release(self) -> None:
        """Let go of the vectors: the matrix is what is wanted of them."""
        del self.basis, self.next

    def quadrature(self) -> tuple[Floats, Floats]:
        """Return nodes and weights: eigenvalues, and squared first components of their vectors."""
        count = len(self.diagonal)
        beside = np.array(self.beside[: count - 1])
        matrix = np.diag(self.diagonal) + np.diag(beside, 1) + np.diag(beside, -1)
        nodes, vectors = np.linalg.eigh(matrix)
        return nodes, vectors[0] ** 2


def _advance(H: Operator, runs: list[_Run]) -> None:
    if not runs:
        return
    products = H.rows(torch.stack([run.next for run in runs]))
    for run, product in zip(runs, products, strict=True):
        run.extend(product.clone())


def _density(
    H: Operator, runs: list[_Run], bandwidth: float | None, products: int, complete: bool
) -> Density:
    found = [run.quadrature() for run in runs]
    steps = max(len(nodes) for nodes, _ in found)
    nodes, weights = np.zeros((2, len(runs), steps))
    for row, (some_nodes, some_weights) in enumerate(found):
        nodes[row] = np.pad(some_nodes, (0, steps - len(some_nodes)), mode="edge")
        weights[row, : len(some_weights)] = some_weights
    low, high = nodes.min(), nodes.max()
    width = bandwidth or _default_bandwidth(low, high)
    grid = _grid(low, high, width)
    each = np.stack([_smoothed(grid, *pair, width) for pair in zip(nodes, weights, strict=True)])
    count = len(each)
    error = each.std(0, ddof=1) / math.sqrt(count) if count > 1 else np.full(len(grid), math.nan)
    return Density(
        grid, each.mean(0), error, nodes, weights, float(width), H.size, products, complete
    )


def _default_bandwidth(low: float, high: float) -> float:
    size = max(abs(low), abs(high))
    # Equal eigenvalues have no range: theirs is rounding.
    has_range = high - low > 1e-4 * size
    return 0.01 * (high - low if has_range else size or 1.0)


def _grid(low: float, high: float, width: float) -> Floats:
    low, high = low - _REACH * width, high + _REACH * width
    points = max(_POINTS, math.ceil((high - low) / width * _POINTS_PER_BANDWIDTH) + 1)
    if points > _MOST_POINTS:
        raise ValueError(
            f"bandwidth={width} is too small for eigenvalues from {low:.3g} to {high:.3g}: "
            f"take at least {_POINTS_PER_BANDWIDTH * (high - low) / _MOST_POINTS:.3g}"
        )
    return np.linspace(low, high, points)


def _smoothed(grid: Floats, nodes: Floats, weights: Floats, width: float) -> Floats:
    total = np.zeros(len(grid))
    for node, weight in zip(nodes, weights, strict=True):
        total += weight * np.exp(-0.5 * ((grid - node) / width) ** 2)
    return total / (width * math.sqrt(2.0 * math.pi))
