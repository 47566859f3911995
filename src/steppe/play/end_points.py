"""Where descents ended: at a global minimum, at another one, nowhere, or beyond all numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from steppe._shared.array_types import Floats
from steppe.functions import Function
from steppe.play.descent import Descent

# Part of the domain's diagonal. The closest minima there are, Ackley's dents, lie 0.07 apart.
_NEAR = 0.005

GLOBAL, OTHER, NONE, DIVERGED = "global", "another", "none", "diverged"


@dataclass(frozen=True)
class EndPoint:
    """How one descent ended.

    Attributes
    ----------
    kind : str
        "global" or "another": within :func:`reach` of such a minimum; "none", or "diverged".
    minimum : tuple of float or None
        The minimum's place.
    arrival : int or None
        The step from which on it stayed within reach of a global minimum; 0 is the start.
    """

    kind: str
    minimum: tuple[float, ...] | None = None
    arrival: int | None = None


def reach(function: Function) -> float:
    """Return the distance within which a minimum counts as reached: 0.5 % of the diagonal."""
    return _NEAR * math.dist(*zip(*function.bounds, strict=True))


def ends(function: Function, descent: Descent) -> list[EndPoint]:
    """Say of each start where it led."""
    return [_end(function, path) for path in descent.points]


def _end(function: Function, path: Floats) -> EndPoint:
    last, near = path[-1], reach(function)
    if not np.isfinite(last).all():
        return EndPoint(DIVERGED)
    for minimum in function.minima:
        if math.dist(last, minimum.point) <= near:
            if not minimum.is_global:
                return EndPoint(OTHER, minimum.point)
            away = np.linalg.norm(path - np.array(minimum.point), axis=1) > near
            return EndPoint(GLOBAL, minimum.point, int(np.flatnonzero(away).max(initial=-1)) + 1)
    found = _minimum_beside(function, last, near)
    return EndPoint(NONE) if found is None else EndPoint(OTHER, found)


def _minimum_beside(function: Function, place: Floats, near: float) -> tuple[float, ...] | None:
    """Look for a minimum that is not listed, by trust regions that no neighbour fits into."""
    from scipy.optimize import minimize

    def at(x: Floats) -> torch.Tensor:
        return torch.as_tensor(x, dtype=torch.float64)

    found = minimize(
        lambda x: function(at(x)).item(),
        place,
        jac=lambda x: function.gradient(at(x)).numpy(),
        hess=lambda x: function.hessian(at(x)).numpy(),
        method="trust-exact",
        options={"initial_trust_radius": near / 2, "max_trust_radius": near, "maxiter": 20},
    )
    strict = np.linalg.eigvalsh(found.hess).min() > 0
    listed: Sequence[tuple[float, ...]] = [minimum.point for minimum in function.minima]
    new = all(math.dist(found.x, point) > near for point in listed)
    if found.success and strict and new and math.dist(found.x, place) <= near:
        return tuple(found.x.tolist())
    return None
