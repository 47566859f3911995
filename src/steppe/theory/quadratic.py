"""How fast momentum converges on a quadratic loss, with critical momenta and without.

With v ≡ 1 the iteration is linear. For curvature h and step α::

    m ← β·m + (1 − β)·h·x,      x ← x − α·(m + (1/C)·Σ_c m_{−τ_c})

where m_{−τ} is the momentum of τ steps ago, and the sum is absent in heavy ball. Put x_t = z^t:
every mode decays as |z|^t, z a root of::

    (z − 1)(z − β) + α·(1 − β)·h·z·[1 + (1/C)·Σ_c z^−τ_c] = 0
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import exp, expm1, inf, log, log1p, sqrt

import numpy as np
from numpy.typing import ArrayLike

from steppe._shared.array_types import Floats
from steppe._shared.names import check_name
from steppe._shared.validation import check_integer, check_number, check_positive
from steppe.landscape import Result
from steppe.theory.root_locus import convergent_steps, spectral_radius

METHODS = ("heavy-ball", "critical-momenta")

# Default number of a buffer's slots.
_SLOTS = 5
# Smallest 1 − rate that float64 can tell from 0 with some precision.
_SMALLEST = 1e-13
# Relative precision to which 1 − rate is solved for.
_PRECISION = 1e-10
# The search over β begins at 47 values of −log(1 − β): β from 0 to 0.999.
_SPACING = 0.15
_SPACINGS = 47


def rate(
    method: str,
    curvature: ArrayLike,
    *,
    lr: float,
    momentum: float,
    ages: Iterable[int] | None = None,
) -> Floats:
    """Return the factor by which the distance from a quadratic's minimum shrinks each step.

    It is the largest |z| of this module's equation, the factor in the limit of many steps; below 1
    where the iteration converges.

    Parameters
    ----------
    method : {"heavy-ball", "critical-momenta"}
        Momentum without a buffer, or with a buffer whose slots have fixed ages.
    curvature : array_like
        h, of any shape; at least 0.
    lr : float
        α, the learning rate for m ← βm + (1−β)g; positive. torch's SGD, whose momentum is
        m ← βm + g, takes α(1−β).
    momentum : float
        β, in [0, 1).
    ages : iterable of int, optional
        τ_1 … τ_C, each at least 1: how many steps ago the remembered momenta were current. Default:
        1 … 5, as of a buffer of five slots that always replaces the oldest. Not for heavy ball.

    Returns
    -------
    ndarray
        ρ, of ``curvature``'s shape. Heavy ball's is exact; with critical momenta it is right to
        1e-8 where two roots coincide, and near rounding elsewhere.

    Raises
    ------
    ValueError
        An argument is out of its range, ``method`` is unknown, or ``ages`` is given for heavy ball.
    TypeError
        ``ages`` is no sequence of integers, or another argument is no number.

    Notes
    -----
    With fixed ages, critical gradients have the same equation: linear filters commute. A priority
    buffer's ages change, so that no single equation describes it.

    References
    ----------
    Polyak, *Some methods of speeding up the convergence of iteration methods*, 1964; Malviya et
    al., arXiv 2307.09638. The equation is derived by putting x_t = z^t.

    Examples
    --------
    >>> rate("heavy-ball", [1.0, 100.0], lr=0.03, momentum=0.81)
    array([0.96439647, 0.9       ])
    >>> rate("critical-momenta", [1.0, 100.0], lr=0.003, momentum=0.81)
    array([0.99377704, 0.97681203])
    """
    check_name("method", method, METHODS)
    h = np.asarray(curvature, dtype=np.float64)
    wrong = h[~(np.isfinite(h) & (h >= 0))]
    if wrong.size:
        raise ValueError(f"curvature must be finite and ≥ 0, got {wrong[0]}")
    check_positive(lr=lr)
    _check_momentum(momentum)
    steps = lr * (1 - momentum) * h
    if method == "critical-momenta":
        remembered = range(1, _SLOTS + 1) if ages is None else _checked_ages(ages)
        return spectral_radius(steps, momentum, remembered)[()]
    if ages is not None:
        raise ValueError(f"heavy-ball remembers no momenta: leave ages out, got {ages}")
    return _heavy_ball(steps, momentum)[()]


@dataclass(frozen=True)
class OptimalRate(Result):
    """The best worst-case rate over a spectrum, and the settings that reach it.

    Attributes
    ----------
    rate : float
        ρ*, the largest rate over all curvatures of the spectrum.
    lr : float
        α for a smallest curvature of 1; divide it by another smallest curvature.
    momentum : float
        β.
    """

    rate: float
    lr: float
    momentum: float


def optimal_rate(
    method: str,
    condition_number: float,
    *,
    capacity: int | None = None,
    momentum: float | None = None,
) -> OptimalRate:
    """Minimise the largest rate over all curvatures from 1 to κ.

    Parameters
    ----------
    method : {"heavy-ball", "critical-momenta"}
        As in :func:`rate`.
    condition_number : float
        κ, the largest curvature over the smallest; at least 1.
    capacity : int, optional
        C, the number of slots of critical momenta, whose ages are 1 … C; at least 1. Default: 5.
        Not for heavy ball.
    momentum : float, optional
        β, in [0, 1). Default: the best one, which with critical momenta is searched from 0 to
        0.999.

    Returns
    -------
    OptimalRate
        1 − rate has a relative error of 1e-6 as long as it is above 1e-10. Where a range of lr
        reaches the rate, ``lr`` is from its inside.

    Raises
    ------
    ValueError
        An argument is out of its range, ``method`` is unknown, ``capacity`` is given for heavy
        ball, or 1 − rate is lost in rounding.
    TypeError
        ``capacity`` is no integer, or another argument no number.

    Notes
    -----
    Heavy ball's rate falls, is constant and rises with h, so that the smallest and the largest
    curvature decide. With s = lr(1−β)h their larger rate is least where s_1 + s_κ = 2(1+β), which
    is lr = 2(1+β)/((1−β)(1+κ)); with the best β, √β = ρ* = (√κ−1)/(√κ+1) (Polyak, 1964).

    With critical momenta the rate rises and falls several times with h, and the steps that reach a
    given rate are several intervals (:mod:`steppe.theory.root_locus`); the whole spectrum has to
    fit into one. ρ* is the smallest rate with an interval whose ends are a factor κ apart.

    Examples
    --------
    >>> best = optimal_rate("heavy-ball", 100.0)
    >>> round(best.rate, 6), round(best.lr, 6)
    (0.818182, 0.1)
    >>> round(1 - optimal_rate("critical-momenta", 100.0, momentum=0.9).rate, 4)
    0.007
    """
    check_name("method", method, METHODS)
    check_number(condition_number=condition_number)
    if not 1 <= condition_number < inf:
        raise ValueError(f"condition_number must be a finite number ≥ 1, got {condition_number}")
    if momentum is not None:
        _check_momentum(momentum)
    if method == "critical-momenta":
        slots = _SLOTS if capacity is None else capacity
        check_integer(capacity=slots)
        return _best_critical(condition_number, momentum, range(1, slots + 1))
    if capacity is not None:
        raise ValueError(f"heavy-ball remembers no momenta: leave capacity out, got {capacity}")
    return _best_heavy_ball(condition_number, momentum)


def _heavy_ball(steps: Floats, momentum: float) -> Floats:
    """Return the larger root of z² − (1 + β − s)z + β, whose discriminant is factored."""
    root = sqrt(momentum)
    discriminant = (steps - (1 - root) ** 2) * (steps - (1 + root) ** 2)
    real = (np.abs(1 + momentum - steps) + np.sqrt(np.maximum(discriminant, 0))) / 2
    return np.where(discriminant > 0, real, root)


def _best_heavy_ball(condition_number: float, momentum: float | None) -> OptimalRate:
    if momentum is None:
        best = (sqrt(condition_number) - 1) / (sqrt(condition_number) + 1)
        _check_gap(1 - best, condition_number)
        return OptimalRate(best, _balanced(condition_number, best**2) / (1 - best**2), best**2)
    step = _balanced(condition_number, momentum)
    best = float(_heavy_ball(np.asarray(step), momentum))
    _check_gap(1 - best, condition_number)
    return OptimalRate(best, step / (1 - momentum), momentum)


def _balanced(condition_number: float, momentum: float) -> float:
    """Return the step s at the smallest curvature at which both ends have the same rate."""
    return 2 * (1 + momentum) / (1 + condition_number)


def _check_gap(gap: float, condition_number: float) -> None:
    if gap <= _SMALLEST:
        raise ValueError(
            f"1 − rate is below {_SMALLEST:g} and lost in rounding at "
            f"condition_number={condition_number:g}: take a smaller condition_number or momentum"
        )


def _best_critical(
    condition_number: float, momentum: float | None, ages: Sequence[int]
) -> OptimalRate:
    def reaches(gap: float, beta: float) -> bool:
        low, high = _widest(gap, beta, ages)
        return high >= condition_number * low

    if momentum is None:
        gap, momentum = _search(reaches)
    else:
        gap = _largest_gap(reaches, momentum)
    _check_gap(gap, condition_number)
    low, high = _widest(gap, momentum, ages)
    return OptimalRate(1 - gap, sqrt(low * high / condition_number) / (1 - momentum), momentum)


def _widest(gap: float, momentum: float, ages: Sequence[int]) -> tuple[float, float]:
    """Return the widest interval, by the ratio of its ends, of steps with a rate of 1 − gap."""
    found = convergent_steps(1 - gap, momentum, ages)
    return max(found, key=lambda window: window[1] / window[0], default=(1.0, 0.0))


def _largest_gap(
    reaches: Callable[[float, float], bool], momentum: float, known: float = _SMALLEST
) -> float:
    """Return the largest 1 − ρ that is reached, by bisecting its logarithm from a known one.

    It can be bisected because the intervals of steps shrink as 1 − ρ grows.
    """
    low, high = log(known), 0.0
    while high - low > _PRECISION:
        middle = (low + high) / 2
        low, high = (middle, high) if reaches(exp(middle), momentum) else (low, middle)
    return exp(low)


def _search(reaches: Callable[[float, float], bool]) -> tuple[float, float]:
    """Return the largest 1 − ρ over β, and that β: a grid in −log(1 − β), refined by halving.

    No derivative is used, because the best β may lie where two intervals are about to separate and
    the rate has a kink. Most β cost a single test of whether they are better than the best so far.
    """
    best, gap, spacing = 0.0, _SMALLEST, _SPACING

    def improved(position: float) -> bool:
        nonlocal best, gap
        beta, more = -expm1(-position), gap * (1 + _PRECISION)
        if position < 0 or not reaches(more, beta):
            return False
        best, gap = beta, _largest_gap(reaches, beta, more)
        return True

    for index in range(_SPACINGS):
        improved(index * _SPACING)
    while spacing > _PRECISION:
        centre = -log1p(-best)
        if not (improved(centre - spacing) or improved(centre + spacing)):
            spacing /= 2
    return gap, best


def _check_momentum(momentum: float) -> None:
    check_number(momentum=momentum)
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must be in [0, 1), got {momentum}")


def _checked_ages(ages: Iterable[int]) -> list[int]:
    if not isinstance(ages, Iterable):
        raise TypeError(f"ages must be a sequence of integers, got {ages!r}")
    listed = list(ages)
    # The current momentum is not stored: the youngest is of age 1.
    for age in listed:
        check_integer(ages=age)
    if not listed:
        raise ValueError("ages is empty: give at least one age, or take method 'heavy-ball'")
    return listed
