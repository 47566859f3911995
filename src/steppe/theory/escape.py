"""How long a minimum holds an optimizer that steps along noisy gradients."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from steppe.landscape.result import Result
from steppe.names import unknown
from steppe.theory.methods import find_method, positive, positive_curvatures

Regime = Literal["local", "frozen"]

#: C·B/|H| of the gradients, at the minimum and at the saddle; one number stands for both.
Noise = float | tuple[float, float]

REGIMES = ("local", "frozen")

# Where simulations followed the formula, see docs/escape.md.
LEAST_TERM = 3.0
MOST_STEP = 0.02


@dataclass(frozen=True)
class Escape(Result):
    """What :func:`escape_time` found.

    Attributes
    ----------
    log : float
        Natural logarithm of the mean number of steps.
    exponent : float
        E: the barrier over the temperature on the way up it.
    prefactor : float
        The factor before exp(E), in steps.
    terms : tuple of float
        The shares of E that are climbed at the minimum's and at the saddle's curvature.
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
        """Mean number of steps; infinite where that is too large for a float."""
        try:
            return math.exp(self.log)
        except OverflowError:
            return math.inf

    @property
    def valid(self) -> bool:
        """Whether nothing speaks against the formula."""
        return not self.warnings


def path_coefficient(h_min: float, h_saddle: float) -> float:
    """Return s of a well made of two parabolas: |h_b|/(h_a + |h_b|).

    That is the share of the barrier that lies below the joint of the minimum's parabola and the
    saddle's, which meet in value and slope.

    Parameters
    ----------
    h_min : float
        Curvature at the minimum; positive.
    h_saddle : float
        Magnitude of the curvature at the saddle; positive.

    Raises
    ------
    ValueError
        A curvature is not positive.

    Examples
    --------
    >>> path_coefficient(3.0, 1.0)
    0.25
    """
    positive_curvatures(h_min, h_saddle)
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

    with a the minimum and b the saddle: a step is −ηP·(slope + noise of variance C), hence
    diffusion at temperature T, read as Itô does, which is what the iteration is. v = C is the
    gradient's second moment. P = v^q has q = 0 for SGD, −½ for Adam and ½ for InvAdam, and
    DualAdam's is (1−α)/√v + α√v. So at equal s and equal |h_b|/h_a, log τ falls as h^−(1+q): a
    sharp minimum is left soonest, beside a flat one, by InvAdam, then by SGD, then by Adam.

    Parameters
    ----------
    method : str
        "sgd", "adam", "invadam" or "dualadam".
    lr : float
        η.
    batch_size : float
        B, in samples.
    barrier : float
        ΔL: how far the loss rises from the minimum to the saddle.
    h_min : float
        h_a: curvature at the minimum along the way out, loss per length squared.
    h_saddle : float
        \|h_b\|: magnitude of the negative curvature at the saddle, along the same way; positive.
    s : float
        Share of the barrier that is climbed at the minimum's curvature, between 0 and 1. A well of
        two parabolas has :func:`path_coefficient`.
    alpha : float, optional
        α of DualAdam, from 0 (Adam) to 1 (InvAdam), taken as constant; others have none.
    regime : str, default "local"
        "local": P follows the curvature, as with an average v much shorter than the way over the
        barrier takes, 1/(1 − β₂) ≪ 1/(ηPh). "frozen": P stays the minimum's, as with one much
        longer.
    noise : float or pair, default 1.0
        C·B/\|h\|, at the minimum and at the saddle, where it has been measured
        (:func:`gradient_noise`); the theory takes 1.

    Returns
    -------
    Escape
        ``log``, ``steps``, ``exponent``, ``prefactor``, ``terms``, ``valid`` and ``warnings``.

    Raises
    ------
    ValueError
        A name is unknown, a number is out of its range, or the temperature leaves that of floats.

    Notes
    -----
    Valid where both terms of E are at least 3 (at 0.17 it was off by a factor of 2) and ηPh is at
    most 0.02 at both ends; ``warnings`` says where not. What the numbers cannot tell: between a
    minimum and a saddle of a smooth loss the curvature passes through 0. If the noise vanished
    there with it, in the local regime the integral behind E would converge for Adam, diverge
    logarithmically for SGD, and as 1/√floor for InvAdam, floor being the least noise there is.

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
    """
    found = find_method(method, alpha)
    if regime not in REGIMES:
        raise ValueError(unknown("regime", regime, REGIMES))
    positive(lr=lr, batch_size=batch_size, barrier=barrier)
    positive_curvatures(h_min, h_saddle)
    if not 0.0 < s < 1.0:
        raise ValueError(f"s={s} must lie between 0 and 1: it is a share of the barrier")
    curvatures = h_min, h_saddle
    variances = noise_variances(curvatures, batch_size, noise)
    P = preconditioners(lambda v: found.preconditioner(v, alpha), variances, regime)
    temperatures = [lr * p * c / 2.0 for p, c in zip(P, variances, strict=True)]
    positive(temperature_min=temperatures[0], temperature_saddle=temperatures[1])
    T_a, T_b = temperatures
    terms = barrier * s / T_a, barrier * (1.0 - s) / T_b
    prefactor = 2.0 * math.pi * math.sqrt(T_b / T_a) / math.sqrt(h_min * h_saddle) / (lr * P[0])
    steps = [lr * p * h for p, h in zip(P, curvatures, strict=True)]
    return Escape(
        log=math.log(prefactor) + sum(terms),
        exponent=sum(terms),
        prefactor=prefactor,
        terms=terms,
        warnings=_warnings(steps, terms),
    )


def noise_variances(
    curvatures: tuple[float, float], batch_size: float, noise: Noise
) -> tuple[float, float]:
    """Return C = noise·|h|/B at the minimum and at the saddle.

    Raises
    ------
    ValueError
        ``noise`` is neither a positive number nor two.
    """
    pair = noise if isinstance(noise, tuple) else (noise, noise)
    if len(pair) != 2:
        raise ValueError(f"noise={noise} must be one number, or two: at the minimum, at the saddle")
    for value in pair:
        positive(noise=value)
    return pair[0] * curvatures[0] / batch_size, pair[1] * curvatures[1] / batch_size


def preconditioners(
    P: Callable[[float], float], variances: tuple[float, float], regime: str
) -> tuple[float, float]:
    """Return P at the minimum and at the saddle."""
    at_min = P(variances[0])
    return at_min, at_min if regime == "frozen" else P(variances[1])


def _warnings(steps: list[float], terms: tuple[float, float]) -> tuple[str, ...]:
    places = "minimum", "saddle"
    large = [
        f"lr·P·h is {step:.3g} at the {place}, above {MOST_STEP:g}: steps are too large for the "
        "diffusion limit"
        for step, place in zip(steps, places, strict=True)
        if step > MOST_STEP * (1.0 + 1e-9)
    ]
    small = [
        f"the exponent climbs by {term:.3g} at the {place}, less than {LEAST_TERM:g}: escapes are "
        "not rare"
        for term, place in zip(terms, places, strict=True)
        if term < LEAST_TERM * (1.0 - 1e-9)
    ]
    return (*large, *small)
