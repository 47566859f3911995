"""Classify where descents ended: at a global minimum, at another one, at none, or diverged.

Table, pictures and page count and mark the ends by it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from steppe._shared.array_types import Floats
from steppe.functions import Function
from steppe.play.descent import Descent

# A share of the domain's diagonal. It tells the closest minima of all functions apart: Ackley's
# dents lie 0.07 of the diagonal apart.
_NEAR = 0.005

#: The kinds of end points.
GLOBAL, OTHER, NONE, DIVERGED = "global", "another", "none", "diverged"


@dataclass(frozen=True)
class EndPoint:
    """How one descent ended.

    Attributes
    ----------
    kind : str
        "global" or "another" if it ended within :func:`arrival_radius` of such a minimum, "none" if
        it ended elsewhere, "diverged" if it overflowed.
    minimum : tuple of float or None
        The point of the minimum.
    arrival : int or None
        The step from which on it stayed within that radius of a global minimum; 0 is the start.
    """

    kind: str
    minimum: tuple[float, ...] | None = None
    arrival: int | None = None


def arrival_radius(function: Function) -> float:
    """Return the distance within which a minimum counts as reached.

    It is 0.5 % of the diagonal of the function's domain.
    """
    return _NEAR * math.dist(*zip(*function.bounds, strict=True))


def classify_ends(function: Function, descent: Descent) -> list[EndPoint]:
    """Return how the run from each start ended."""
    return [_classify_end(function, path) for path in descent.points]


def _classify_end(function: Function, path: Floats) -> EndPoint:
    last, near = path[-1], arrival_radius(function)
    if not np.isfinite(last).all():
        return EndPoint(DIVERGED)
    for minimum in function.minima:
        if math.dist(last, minimum.point) <= near:
            if not minimum.is_global:
                return EndPoint(OTHER, minimum.point)
            away = np.linalg.norm(path - np.array(minimum.point), axis=1) > near
            return EndPoint(GLOBAL, minimum.point, int(np.flatnonzero(away).max(initial=-1)) + 1)
    found = _find_unlisted_minimum(function, last, near)
    return EndPoint(NONE) if found is None else EndPoint(OTHER, found)


def _find_unlisted_minimum(
    function: Function, end: Floats, near: float
) -> tuple[float, ...] | None:
    """Look for a minimum within ``near`` of an end that the function's list does not have.

    Ackley's and Lévy's functions have too many minima to list. The trust regions are smaller than
    the distance between two minima, so the search does not leap to a neighbour.
    """
    from scipy.optimize import minimize

    def at(x: Floats) -> torch.Tensor:
        return torch.as_tensor(x, dtype=torch.float64, device="cpu")

    found = minimize(
        lambda x: function(at(x)).item(),
        end,
        jac=lambda x: function.gradient(at(x)).numpy(),
        hess=lambda x: function.hessian(at(x)).numpy(),
        method="trust-exact",
        options={"initial_trust_radius": near / 2, "max_trust_radius": near, "maxiter": 20},
    )
    strict = np.linalg.eigvalsh(found.hess).min() > 0
    listed: Sequence[tuple[float, ...]] = [minimum.point for minimum in function.minima]
    new = all(math.dist(found.x, point) > near for point in listed)
    if found.success and strict and new and math.dist(found.x, end) <= near:
        return tuple(found.x.tolist())
    return None
