"""Agreement of the escape formula with simulations, and wells in which the two are comparable.

``figures/escape.py`` and ``benchmarks/escape.py`` hold the formula against simulations with it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from steppe._shared.validation import check_positive
from steppe.landscape import Result
from steppe.theory.escape_formula import LEAST_TERM, MOST_STEP, Escape, path_coefficient
from steppe.theory.escape_methods import find_method
from steppe.theory.escape_simulation import Simulation


class Well(TypedDict):
    """Keyword arguments of :func:`simulate_escape` and :func:`escape_time`: a well and a method.

    See :func:`escape_time` for each one's meaning and unit.
    """

    lr: float
    batch_size: float
    barrier: float
    h_min: float
    h_saddle: float
    alpha: float | None


@dataclass(frozen=True)
class Agreement(Result):
    """The result of :func:`agreement`.

    Attributes
    ----------
    slope, slope_standard_error : float
        Slope of log(τ/prefactor) over the exponent, each simulation weighted by its number of
        escapes, and its standard error; 1 in theory.
    r : float
        Coefficient of correlation between log(τ/prefactor) and the exponent.
    bias, bias_standard_error : float
        Mean of log(simulated τ/predicted τ), with the same weights, and its standard error; 0 in
        theory.
    """

    slope: float
    slope_standard_error: float
    r: float
    bias: float
    bias_standard_error: float


def limit_well(
    method: str,
    term: float,
    ratio: float = 1.0,
    *,
    batch_size: float = 1.0,
    alpha: float | None = None,
) -> Well:
    r"""Return a well at the limit of the formula's validity, so that simulations are short.

    Learning rate and barrier depend on the method alone: they are such that at curvatures of 1 both
    terms of the exponent are 3, and lr·P·h is 0.02. The curvatures are then chosen so that the
    smaller term is ``term``; they are below 1 unless ``ratio`` is far from 1.

    Parameters
    ----------
    method, batch_size, alpha
        As in :func:`escape_time`.
    term : float
        The smaller of the exponent's two terms in the local regime.
    ratio : float, default 1.0
        \|h_saddle\|/h_min; at 1, s = ½.

    Returns
    -------
    Well
        A dictionary of keyword arguments for :func:`escape_time` and :func:`simulate_escape`.

    Raises
    ------
    TypeError, ValueError
        A number is not positive, or so far from 1 that no floating-point curvature has that term;
        or method or ``alpha`` is not as :func:`escape_time` asks.

    Examples
    --------
    >>> well = limit_well("invadam", 6.0)
    >>> round(well["h_min"], 4) == round(0.5 ** (2 / 3), 4)
    True
    """
    check_positive(term=term, ratio=ratio, batch_size=batch_size)
    found = find_method(method, alpha)
    lr = MOST_STEP / found.preconditioner(1.0 / batch_size, alpha)
    barrier = LEAST_TERM * MOST_STEP / batch_size
    s = path_coefficient(1.0, ratio)

    def sharpest(share: float) -> float:
        """Return the curvature at which that share of the barrier, divided by T, is the term."""
        target = 2.0 * barrier * share / (term * lr)
        return batch_size * _solve(lambda v: found.preconditioner(v, alpha) * v, target)

    # Both terms fall as the curvatures rise.
    h = min(sharpest(s), sharpest(1.0 - s) / ratio)
    return Well(
        lr=lr, batch_size=batch_size, barrier=barrier, h_min=h, h_saddle=ratio * h, alpha=alpha
    )


def _solve(rising: Callable[[float], float], value: float) -> float:
    """Return the argument at which a rising function has a value, by bisecting its logarithm."""
    low, high = 1e-150, 1e150
    if not rising(low) < value < rising(high):
        raise ValueError(
            f"no curvature in the range of floats fits: P(v)·v would be {value:.3g}; take term, "
            "ratio and batch_size nearer to 1"
        )
    while high / low > 1.0 + 1e-14:
        middle = math.sqrt(low) * math.sqrt(high)
        if not low < middle < high:
            break
        low, high = (middle, high) if rising(middle) < value else (low, middle)
    return low


def agreement(theory: Sequence[Escape], simulations: Sequence[Simulation]) -> Agreement:
    r"""Fit log(τ/prefactor) of simulations as a straight line over the exponent.

    Parameters
    ----------
    theory, simulations : sequence of Escape, of Simulation
        Results for the same settings, in the same order; at least two, with different exponents and
        some escapes in each simulation.

    Returns
    -------
    Agreement
        Slope, correlation and bias, with standard errors.

    Raises
    ------
    ValueError
        There are fewer than two results, or not as many of one kind as of the other; a simulation
        has no escapes; or all exponents are equal.

    Examples
    --------
    >>> from steppe.theory import escape_time, simulate_escape
    >>> wells = [limit_well("sgd", term) for term in (1.0, 1.5, 2.0)]
    >>> theory = [escape_time("sgd", **well, s=0.5) for well in wells]
    >>> found = agreement(theory, [simulate_escape("sgd", **well, walkers=100) for well in wells])
    >>> found.r > 0.9
    True
    """
    if len(theory) != len(simulations) or len(theory) < 2:
        raise ValueError(f"got {len(theory)} exponents and {len(simulations)} simulations: "
                         "expected as many of each, at least 2")  # fmt: skip
    if any(simulation.escaped == 0 for simulation in simulations):
        raise ValueError("a simulation has no escapes: raise max_steps")
    exponents = np.array([one.exponent for one in theory])
    if np.ptp(exponents) == 0.0:
        raise ValueError(f"all exponents are {exponents[0]:g}: a slope needs different ones")
    heights = np.array(
        [math.log(b.mean / a.prefactor) for a, b in zip(theory, simulations, strict=True)]
    )
    # The relative variance of a mean of n exponential times is 1/n.
    weights = np.array([float(one.escaped) for one in simulations])
    bias = np.average(heights - exponents, weights=weights)
    centred = exponents - np.average(exponents, weights=weights)
    spread = (weights * centred**2).sum()
    return Agreement(
        slope=float((weights * centred * heights).sum() / spread),
        slope_standard_error=float(1.0 / math.sqrt(spread)),
        r=float(np.corrcoef(exponents, heights)[0, 1]),
        bias=float(bias),
        bias_standard_error=float(1.0 / math.sqrt(weights.sum())),
    )
