"""The steps at which a linear iteration with remembered momenta converges at a given rate.

:mod:`steppe.theory.quadratic` takes its rates from here.

On a quadratic of curvature h the step s = lr·(1−β)·h enters the characteristic equation linearly::

    (z − 1)(z − β) + s·z·[1 + mean_c z^−τ_c] = 0

so each root z belongs to one s = −(z − 1)(z − β) / (z·[1 + mean_c z^−τ_c]), the root locus (Evans,
*Graphical analysis of control systems*, 1948). Roots cross the circle |z| = r only at the few s > 0
whose z lies on it, and between two such steps the number of roots inside is constant. That gives
all steps of a rate r, separate intervals too, without a search over s. It also avoids computing
double roots, which float64 gives to half its digits only.
"""

from collections.abc import Sequence

import numpy as np
from numpy.polynomial import chebyshev

from steppe._shared.array_types import Floats


def spectral_radius(steps: Floats, momentum: float, ages: Sequence[int]) -> Floats:
    """Return the largest |z| for each step, by the eigenvalues of companion matrices.

    Where two roots coincide their error is about 1e-8, the square root of the machine's precision.
    """
    numerator, denominator = _polynomials(momentum, ages)
    coefficients = numerator + steps[..., None] * denominator
    size = coefficients.shape[-1] - 1
    companion = np.zeros((*steps.shape, size, size))
    companion[..., 1:, :-1] = np.eye(size - 1)
    companion[..., 0, :] = -coefficients[..., -2::-1]
    return np.asarray(np.abs(np.linalg.eigvals(companion)).max(axis=-1))


def convergent_steps(
    radius: float, momentum: float, ages: Sequence[int]
) -> list[tuple[float, float]]:
    """Return the intervals of s for which every root has |z| ≤ ``radius`` < 1, in order."""
    steps = _crossings(radius, momentum, ages)
    middles = np.sqrt(steps[1:] * steps[:-1])
    inside = spectral_radius(middles, momentum, ages) <= radius
    return list(zip(steps[:-1][inside].tolist(), steps[1:][inside].tolist(), strict=True))


def _crossings(radius: float, momentum: float, ages: Sequence[int]) -> Floats:
    """Return every s > 0 with a root on the circle, ascending.

    With z = r·exp(iθ) s is real where Im(N(z)·conj D(z)) = Σ_m c_m sin(mθ) = 0. That is sin θ
    times Σ_m c_m U_{m−1}(cos θ), the derivative of the Chebyshev series Σ_m (c_m/m) T_m.
    """
    numerator, denominator = _polynomials(momentum, ages)
    powers = np.arange(len(numerator))
    scale = radius**powers
    both = np.correlate(numerator * scale, denominator * scale, mode="full")
    last = len(powers) - 1
    sines = both[last + 1 :] - both[last - 1 :: -1]
    series = chebyshev.chebder(np.append(0.0, sines / powers[1:]))
    cosines = chebyshev.chebroots(chebyshev.chebtrim(series))
    cosines = cosines[np.isreal(cosines)].real
    angles = np.arccos(cosines[np.abs(cosines) < 1])
    z = radius * np.concatenate([[1.0, -1.0], np.exp(1j * angles)])
    # Where the denominator has a zero on the circle, s is not finite and is left out below.
    with np.errstate(divide="ignore", invalid="ignore"):
        remembered = np.mean([z**-age for age in ages], axis=0)
        steps = -((z - 1) * (z - momentum) / (z * (1 + remembered))).real
    return np.sort(steps[np.isfinite(steps) & (steps > 0)])


def _polynomials(momentum: float, ages: Sequence[int]) -> tuple[Floats, Floats]:
    """Return (z−1)(z−β) and z·[1 + mean z^−τ], both times z^(max τ − 1), lowest power first."""
    oldest = max(ages)
    numerator, denominator = np.zeros((2, oldest + 2))
    numerator[-3:] = momentum, -(1 + momentum), 1.0
    denominator[-2] = 1.0
    np.add.at(denominator, oldest - np.asarray(ages), 1 / len(ages))
    return numerator, denominator
