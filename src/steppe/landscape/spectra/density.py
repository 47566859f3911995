"""The density of an operator's eigenvalues, by stochastic Lanczos quadrature."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from steppe._shared.array_types import Floats
from steppe._shared.progress import progress
from steppe._shared.validation import check_integer, check_number
from steppe.landscape._drawing import BLUE, axes_for
from steppe.landscape.operators.operator import Operator, check_operator
from steppe.landscape.result import Result
from steppe.landscape.spectra._fewer_steps import with_half_the_steps
from steppe.landscape.spectra._orthonormal_basis import ROUNDING, OrthonormalBasis
from steppe.landscape.spectra._probes import Probes
from steppe.landscape.spectra._symmetry import SymmetryCheck

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Probes that advance together share forward passes and gradients. Their vectors take at most this.
_TOGETHER_BYTES = 1 << 28

# The grid goes this many bandwidths beyond the eigenvalues: 1e-9 of a Gaussian is cut off.
_REACH = 6.0
# Sums over equal steps of half a bandwidth are integrals to 1e-30 already (Poisson's formula).
_POINTS_PER_BANDWIDTH = 4
_POINTS, _MOST_POINTS = 1001, 200_001


@dataclass(frozen=True, eq=False)
class Density(Result):
    """The result of :func:`density`.

    Attributes
    ----------
    grid : ndarray
        Eigenvalues, evenly spaced, shape (points,).
    density : ndarray
        Their density φ, in 1/(an eigenvalue's unit), shape (points,); its integral over the grid
        is 1.
    stderr : ndarray
        Standard error of the density over probes and by ``rounding``, shape (points,); NaN with one
        probe.
    nodes, weights : ndarray
        θ and w of each probe's quadrature, shape (probes, steps): eigenvalues of its tridiagonal
        matrix, and the share of the probe along each. Probes that ended early have weights of 0 at
        the end.
    bandwidth : float
        σ, the standard deviation of the Gaussian that represents each node.
    size : int
        Number of eigenvalues.
    products : int
        How many products it took.
    converged : bool
        Whether every probe took all steps, or ended at an invariant subspace, and products were
        those of a symmetric matrix.
    asymmetry : float
        The largest component of a product that a symmetric operator's has not, relative to the
        largest eigenvalue.
    reason : str
        Why it has not converged; empty if it has.
    rounding : float
        The relative error of products: ε of the number format of fewest bits that they are
        computed in.
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
    asymmetry: float = 0.0
    reason: str = ""
    rounding: float = 0.0

    def moment(self, power: int) -> tuple[float, float]:
        r"""Return the mean of the eigenvalues' ``power``, and its standard error.

        The error is over probes and by rounding. Each of the products in :math:`vᵀH^p v` changes it
        by at most :math:`ε‖H^p v‖`, whose mean square is the moment of 2p.
        """
        each = (self.weights * self.nodes**power).sum(axis=1)
        squares = (self.weights * self.nodes ** (2 * power)).sum(axis=1).mean()
        rounded = power * self.rounding * math.sqrt(squares)
        return float(each.mean()), float(np.hypot(_error_of_mean(each), rounded))

    def effective_dimension(self, alpha: float) -> tuple[float, float]:
        r"""Return how many directions the data determine, and the standard error of that number.

        .. math:: N_{\text{eff}} = \sum_i \frac{λ_i}{λ_i + α}

        Directions much sharper than α count as one, much flatter ones as none, and negative
        curvature as none. The error is over probes, by rounding, and by the number of steps: what
        half as many would have changed.

        Parameters
        ----------
        alpha : float
            α, in the eigenvalues' unit: the precision of a Gaussian prior over the number of
            samples, which is the weight decay λ of a loss with λ‖w‖²/2.

        Raises
        ------
        ValueError
            ``alpha`` is not a finite number above 0.

        References
        ----------
        MacKay, *Bayesian interpolation*, Neural Computation 4 (1992); Maddox, Benton and Wilson,
        arXiv 2003.02139.

        Examples
        --------
        >>> diagonal = torch.cat([torch.zeros(90), torch.full((10,), 3.0)])
        >>> found = density(Operator(100, lambda rows: rows * diagonal), probes=50)
        >>> value, error = found.effective_dimension(1.0)
        >>> abs(value - 7.5) < 3 * error
        True
        """
        check_number(alpha=alpha)
        if not 0 < alpha < math.inf:
            raise ValueError(f"alpha={alpha} must be a finite number above 0")

        def shares(nodes: Floats, weights: Floats) -> Floats:
            positive = np.maximum(nodes, 0.0)
            found: Floats = (weights * positive / (positive + alpha)).sum(axis=-1)
            return found

        each = shares(self.nodes, self.weights)
        coarse = [
            float(shares(*with_half_the_steps(*pair)))
            for pair in zip(self.nodes, self.weights, strict=True)
        ]
        # As λ/(λ + α) rises by at most 1/α for each of λ's units.
        rounded = min(1.0, self.rounding * float(np.abs(self.nodes).max()) / alpha)
        change = float(each.mean() - np.mean(coarse))
        error = math.hypot(float(_error_of_mean(each)), change, rounded)
        return self.size * float(each.mean()), self.size * error

    @property
    def trace(self) -> float:
        """The trace: ``size`` times the first moment."""
        return self.size * self.moment(1)[0]

    @property
    def trace_stderr(self) -> float:
        """Standard error of the trace, as of :meth:`moment`."""
        return self.size * self.moment(1)[1]

    def plot(self, axes: "Axes | None" = None) -> "Axes":
        """Draw the density on a logarithmic scale, with a band of two standard errors."""
        axes = axes_for(axes, "Spectral density")
        # A hundredth of the peak that a single eigenvalue makes: less is not shown.
        floor = 1e-2 / (self.size * self.bandwidth * math.sqrt(2.0 * math.pi))
        low, high = self.density - 2 * self.stderr, self.density + 2 * self.stderr
        if np.isfinite(high).all():
            axes.fill_between(
                self.grid, np.maximum(low, floor), np.maximum(high, floor),
                color=BLUE, alpha=0.2, lw=0,
            )  # fmt: skip
        axes.plot(self.grid, np.maximum(self.density, floor), color=BLUE, lw=1.4)
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

    Lanczos' method from a random unit vector gives a quadrature of that vector's spectral density;
    the mean over random vectors estimates the operator's. Vectors are fully reorthogonalised.

    .. math:: φ(λ) = \frac{1}{\text{probes}} \sum_j \sum_i w_{ji} \, N(λ; θ_{ji}, σ^2)

    Parameters
    ----------
    H : Operator
        A symmetric operator, such as :func:`~steppe.landscape.hessian` returns.
    probes : int, default 10
        Number of random vectors, at least 1. The error falls as 1/√probes.
    steps : int, default 60
        Lanczos steps for each probe, at least 2. As many vectors are kept in memory.
    bandwidth : float, optional
        σ, positive. Default: a hundredth of the range of the nodes.
    seed : int, default 0
        Seed of the random vectors: the same seed gives the same result.

    Returns
    -------
    Density
        On Ctrl-C the estimate from the steps done so far, with ``converged=False``.

    Raises
    ------
    ValueError
        An argument is out of range, or a product is not finite.
    TypeError
        ``H`` is no operator, ``bandwidth`` no number, or another argument no integer.

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
    check_operator(H)
    check_integer(probes=probes)
    check_integer(2, steps=steps)
    if bandwidth is not None:
        check_number(bandwidth=bandwidth)
    if bandwidth is not None and not 0 < bandwidth < math.inf:
        raise ValueError(f"bandwidth={bandwidth} must be a finite number above 0")
    probes, steps = int(probes), min(int(steps), H.size)
    before, source = H.products, Probes(H, seed)
    runs: list[_LanczosRun] = []
    together = max(1, _TOGETHER_BYTES // (steps * H.size * H.dtype.itemsize))
    symmetry, reason = SymmetryCheck(H), ""
    with progress("density", probes * steps) as advance, H.held():
        try:
            while len(runs) < probes:
                new = [
                    _LanczosRun(H, row, symmetry)
                    for row in source.sphere(min(together, probes - len(runs)))
                ]
                for step in range(steps):
                    _extend_runs(H, [run for run in new if not run.is_exhausted])
                    if step == 0:
                        runs += new
                    advance(len(new))
                for run in new:
                    run.release()
        except KeyboardInterrupt:
            if not runs:
                raise
            reason = "interrupted"
        if symmetry.is_broken:
            reason = symmetry.reason(source.sphere(1)[0])
    return _density(H, runs, bandwidth, H.products - before, symmetry, reason)


class _LanczosRun:
    """One probe's Lanczos run: its basis and its tridiagonal matrix."""

    def __init__(self, H: Operator, start: Tensor, symmetry: SymmetryCheck) -> None:
        self.symmetry = symmetry
        self.next = start.clone()
        self.basis = OrthonormalBasis(start)
        self.diagonal: list[float] = []
        self.off_diagonal: list[float] = []
        self.smallest = ROUNDING[H.dtype]
        self.is_exhausted = False

    def extend(self, product: Tensor) -> None:
        self.basis.append(self.next)
        components, left = self.basis.orthogonalise(product)
        self.diagonal.append(components[-1].item())
        if not math.isfinite(self.diagonal[-1]):
            raise ValueError("a product is not finite: the operator overflows")
        scale = max(map(abs, (*self.diagonal, *self.off_diagonal)))
        expected = np.zeros(len(components) - 1)
        expected[-1:] = self.off_diagonal[-1:]
        self.symmetry.compare(components[:-1].numpy(), expected, scale)
        self.is_exhausted = left <= self.smallest * scale
        if not self.is_exhausted:
            self.off_diagonal.append(left)
            self.next = product.div_(left)

    def release(self) -> None:
        """Free the vectors: only the tridiagonal matrix is needed from here on."""
        del self.basis, self.next

    def quadrature(self) -> tuple[Floats, Floats]:
        """Return nodes and weights: eigenvalues, and squared first components of their vectors."""
        count = len(self.diagonal)
        off_diagonal = np.array(self.off_diagonal[: count - 1])
        matrix = np.diag(self.diagonal) + np.diag(off_diagonal, 1) + np.diag(off_diagonal, -1)
        nodes, vectors = np.linalg.eigh(matrix)
        return nodes, vectors[0] ** 2


def _extend_runs(H: Operator, runs: list[_LanczosRun]) -> None:
    if not runs:
        return
    products = H.rows(torch.stack([run.next for run in runs]))
    for run, product in zip(runs, products, strict=True):
        run.extend(product.clone())


def _density(
    H: Operator,
    runs: list[_LanczosRun],
    bandwidth: float | None,
    products: int,
    symmetry: SymmetryCheck,
    reason: str,
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
    mean = each.mean(0)
    # A product that is off by ε of the largest node moves nodes by as much.
    rounding = max(symmetry.precision, torch.finfo(H.dtype).eps)
    shift, shares = rounding * max(abs(low), abs(high)), weights / len(runs)
    moved = [
        _smoothed(grid, (nodes + step).ravel(), shares.ravel(), width) for step in (-shift, shift)
    ]
    return Density(
        grid=grid,
        density=mean,
        stderr=np.hypot(_error_of_mean(each), np.abs(moved - mean).max(axis=0)),
        nodes=nodes,
        weights=weights,
        bandwidth=float(width),
        size=H.size,
        products=products,
        converged=not reason,
        asymmetry=symmetry.asymmetry,
        reason=reason,
        rounding=rounding,
    )


def _error_of_mean(each: Floats) -> Floats:
    """Return the standard error of the mean over the first axis; NaN where there is but one."""
    if len(each) == 1:
        return np.full(each.shape[1:], math.nan)
    return np.asarray(each.std(axis=0, ddof=1) / math.sqrt(len(each)))


def _default_bandwidth(low: float, high: float) -> float:
    size = max(abs(low), abs(high))
    # Nodes of equal eigenvalues differ by rounding only, which is no range.
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
    with np.errstate(under="ignore"):
        for node, weight in zip(nodes, weights, strict=True):
            total += weight * np.exp(-0.5 * ((grid - node) / width) ** 2)
    return total / (width * math.sqrt(2.0 * math.pi))
