"""The formula for the mean time in which an optimizer with noisy gradients leaves a minimum.

:mod:`steppe.theory.escape_simulation` checks it, and :mod:`steppe.theory.escape_prediction`
evaluates it at a trained model.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from steppe._shared.array_types import Array
from steppe._shared.names import check_name
from steppe._shared.validation import check_number, check_positive
from steppe.landscape import Result
from steppe.theory.escape_methods import check_curvatures, find_method

Regime = Literal["local", "frozen"]

#: C·B/|h| of the gradients, at the minimum and at the saddle; one number stands for both.
Noise = float | Sequence[float] | Array

REGIMES = ("local", "frozen")

_POINTS = ("minimum", "saddle")

# Simulations follow the formula where terms are at least, and steps at most, as large: see
# "Where it holds" in docs/escape.md.
LEAST_TERM = 3.0
MOST_STEP = 0.02


@dataclass(frozen=True)
class Escape(Result):
    """The result of :func:`escape_time`.

    Attributes
    ----------
    log : float
        Natural logarithm of the mean number of steps.
    exponent : float
        E, the barrier over the temperature along the path; without unit.
    prefactor : float
        The factor before exp(E), in steps.
    terms : tuple of float
        The parts of E that are climbed at the minimum's and at the saddle's curvature.
    warnings : tuple of str
        Assumptions that do not hold, each with its value.
    """

    log: float
    exponent: float
    prefactor: float
    terms: tuple[float, float]
    warnings: tuple[str, ...]

    @property
    def steps(self) -> float:
        """Mean number of steps; infinite where it is too large for a float."""
        try:
            return math.exp(self.log)
        except OverflowError:
            return math.inf

    @property
    def valid(self) -> bool:
        """Whether all assumptions of the formula hold."""
        return not self.warnings


def path_coefficient(h_min: float, h_saddle: float) -> float:
    """Return s of a well made of two parabolas: |h_b|/(h_a + |h_b|).

    It is the share of the barrier below the point where the minimum's parabola and the saddle's
    meet in value and slope.

    Parameters
    ----------
    h_min : float
        Curvature at the minimum; positive.
    h_saddle : float
        Magnitude of the curvature at the saddle, in the same unit; positive.

    Returns
    -------
    float
        s, between 0 and 1.

    Raises
    ------
    TypeError, ValueError
        A curvature is not a positive number.

    Examples
    --------
    >>> path_coefficient(3.0, 1.0)
    0.25
    """
    check_curvatures(h_min, h_saddle)
    return h_saddle / (h_min + h_saddle)


def escape_time(
    method: str,
    *,
    lr: float,
    batch_size: float,
    barrier: float,
    h_min: float,
    h_saddle: float,
    s: float,
    alpha: float | None = None,
    regime: Regime = "local",
    noise: Noise = 1.0,
) -> Escape:
    r"""Return the mean number of steps from a minimum to well past the saddle beside it.

    .. math::
        τ = \frac{2π}{η P_a} \sqrt{\frac{T_b}{T_a \, h_a \, |h_b|}} \; e^E, \qquad
        E = ΔL \left[ \frac{s}{T_a} + \frac{1 - s}{T_b} \right], \qquad
        T = \frac{η P C}{2}, \qquad C = \frac{|h|}{B}

    with a the minimum and b the saddle. A step is −ηP·(slope + noise of variance C), which is a
    diffusion at temperature T in Itô's sense, because the noise of a step is drawn where the step
    begins. v = C is the gradient's second moment. P = v^q with q = 0 for SGD, −½ for Adam and ½ for
    InvAdam; DualAdam's P is (1−α)/√v + α√v. At equal s and equal |h_b|/h_a, log τ falls as
    h^−(1+q): relative to a flat minimum, InvAdam leaves a sharp one soonest, then SGD, then Adam.
    Where both minima share one saddle, s is smaller at the sharp one, and the methods may leave it
    later than the flat one.

    Parameters
    ----------
    method : str
        "sgd", "adam", "invadam" or "dualadam".
    lr : float
        η, the learning rate; positive.
    batch_size : float
        B, in samples; positive.
    barrier : float
        ΔL, the rise of the loss from the minimum to the saddle, in the loss's unit; positive.
    h_min : float
        h_a, the curvature at the minimum along the path out, in the loss's unit over the
        parameters' unit squared; positive.
    h_saddle : float
        \|h_b\|, the magnitude of the negative curvature at the saddle along the same path, in the
        same unit; positive.
    s : float
        Share of the barrier that is climbed at the minimum's curvature, between 0 and 1. A well of
        two parabolas has :func:`path_coefficient`.
    alpha : float, optional
        α of DualAdam, from 0 (Adam) to 1 (InvAdam), taken as constant; not for other methods.
    regime : str, default "local"
        "local": P follows the curvature, as when v averages over much fewer steps than the path
        over the barrier takes, 1/(1 − β₂) ≪ 1/(ηPh). "frozen": P stays as at the minimum, as when v
        averages over many more. :func:`simulate_escape` calls it ``second_moment``.
    noise : float or pair of float, default 1.0
        C·B/\|h\| at the minimum and at the saddle, which :func:`gradient_noise` measures. The
        theory assumes 1.

    Returns
    -------
    Escape
        ``log``, ``steps``, ``exponent``, ``prefactor``, ``terms``, ``valid`` and ``warnings``.

    Raises
    ------
    TypeError
        An argument that should be a number, a name or a pair is not.
    ValueError
        A name is unknown, a number is out of its range, or a result exceeds the range of floats.

    Notes
    -----
    The formula holds where both terms of E are at least 3 and ηPh is at most 0.02 at both points;
    ``warnings`` names violations, and docs/escape.md says how large the error is there. One
    assumption cannot be checked from the numbers: between a minimum and a saddle of a smooth loss
    the curvature passes through 0. If the noise vanished there with it, then in the local regime
    the integral behind E would converge for Adam, diverge logarithmically for SGD, and as 1/√floor
    for InvAdam, floor being the least noise on the path.

    References
    ----------
    Xie, Sato and Sugiyama, ICLR 2021, arXiv 2002.03495 (SGD). Xie et al., ICML 2022, arXiv
    2006.15815 (Adam). Shi et al. 2026, arXiv 2603.07122 (DualAdam; InvAdam's case is derived here,
    as are DualAdam's, the frozen regime and the Itô prefactors: see docs/escape.md).

    Examples
    --------
    >>> well = dict(lr=0.02, batch_size=1.0, barrier=0.1, h_min=1.0, h_saddle=1.0, s=0.5)
    >>> sgd = escape_time("sgd", **well)
    >>> round(sgd.exponent, 9), round(sgd.prefactor), sgd.valid
    (10.0, 314, True)
    >>> escape_time("sgd", **(well | {"lr": 0.05})).warnings[0]
    'lr·P·h is 0.05 at the minimum, above 0.02: steps are too large for the diffusion limit'

    :func:`simulate_escape` takes the same mapping without s, which is that of two parabolas:

    >>> from steppe.theory import simulate_escape
    >>> well = dict(lr=0.03, batch_size=1.0, barrier=0.07, h_min=1.0, h_saddle=0.5)
    >>> s = path_coefficient(well["h_min"], well["h_saddle"])
    >>> theory = escape_time("adam", **well, s=s, regime="frozen")
    >>> walked = simulate_escape("adam", **well, second_moment="frozen", walkers=100)
    >>> 0.7 < walked.mean / theory.steps < 1.3
    True
    """
    found = find_method(method, alpha)
    check_name("regime", regime, REGIMES)
    check_positive(lr=lr, batch_size=batch_size, barrier=barrier)
    check_curvatures(h_min, h_saddle)
    check_number(s=s)
    if not 0.0 < s < 1.0:
        raise ValueError(f"s must lie between 0 and 1, a share of the barrier: got {s}")
    variances = noise_variances((h_min, h_saddle), batch_size, noise)
    at_min, at_saddle = (found.preconditioner(v, alpha) for v in variances)
    P = at_min, at_min if regime == "frozen" else at_saddle
    given = f"lr={lr}, batch_size={batch_size}, barrier={barrier}"
    temperatures = [lr * p * c / 2.0 for p, c in zip(P, variances, strict=True)]
    _check_floats("the temperature lr·P·C/2", temperatures, given)
    steps = lr * P[0] * h_min, lr * P[1] * h_saddle
    _check_floats("lr·P·h", steps, given)
    T_a, T_b = temperatures
    terms = barrier * s / T_a, barrier * (1.0 - s) / T_b
    _check_floats("the exponent's term", terms, given)
    prefactor = 2.0 * math.pi * math.sqrt(T_b / T_a) * math.sqrt(h_min / h_saddle) / steps[0]
    _check_floats("the prefactor", [prefactor], given)
    return Escape(
        log=math.log(prefactor) + sum(terms),
        exponent=sum(terms),
        prefactor=prefactor,
        terms=terms,
        warnings=_warnings(steps, terms),
    )


def noise_pair(noise: Noise) -> tuple[float, float]:
    """Return C·B/|h| at the minimum and at the saddle.

    Raises
    ------
    TypeError, ValueError
        ``noise`` is neither a positive number nor two.
    """
    if isinstance(noise, str):
        raise TypeError(f"noise must be one number, or two, got {noise!r}")
    pair = (noise, noise) if np.ndim(noise) == 0 else tuple(noise)  # type: ignore[arg-type]
    if len(pair) != 2:
        raise ValueError(f"noise must be one number, or two (minimum, saddle), got {noise}")
    for value in pair:
        check_positive(noise=value)
    return float(pair[0]), float(pair[1])


def noise_variances(
    curvatures: tuple[float, float], batch_size: float, noise: Noise
) -> tuple[float, float]:
    """Return C = noise·|h|/B at the minimum and at the saddle.

    Raises
    ------
    TypeError, ValueError
        ``noise`` is neither a positive number nor two, or C leaves the range of floats.
    """
    ratios = noise_pair(noise)
    at_min, at_saddle = (r * h / batch_size for r, h in zip(ratios, curvatures, strict=True))
    given = f"h_min={curvatures[0]}, h_saddle={curvatures[1]}, batch_size={batch_size}"
    _check_floats("C = noise·|h|/batch_size", (at_min, at_saddle), given)
    return at_min, at_saddle


def _check_floats(what: str, values: Sequence[float], given: str) -> None:
    """Refuse a value that has become zero or infinite, and name what it was computed from."""
    for value, point in zip(values, _POINTS, strict=False):
        if not 0.0 < value < math.inf:
            raise ValueError(
                f"{what} is {value} at the {point}, out of the range of floats: got {given}"
            )


def _warnings(steps: tuple[float, float], terms: tuple[float, float]) -> tuple[str, ...]:
    large = [
        f"lr·P·h is {step:.3g} at the {point}, above {MOST_STEP:g}: steps are too large for the "
        "diffusion limit"
        for step, point in zip(steps, _POINTS, strict=True)
        if step > MOST_STEP * (1.0 + 1e-9)
    ]
    small = [
        f"the exponent climbs by {term:.3g} at the {point}, less than {LEAST_TERM:g}: escapes are "
        "not rare"
        for term, point in zip(terms, _POINTS, strict=True)
        if term < LEAST_TERM * (1.0 - 1e-9)
    ]
    return (*large, *small)
