"""Ackley's function: many small local minima on the way to one kink."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from steppe._shared.validation import check_integer
from steppe.functions.function import Function, Minimum

_REACH = 5.0


def ackley(dimension: int = 2) -> Function:
    r"""Make Ackley's function: a cone with its tip at the origin, and many small dents.

    .. math:: f(x) = -20 \, e^{-r/5} - e^{c} + 20 + e, \qquad
        r = \sqrt{\tfrac1d \sum x_i^2}, \quad c = \tfrac1d \sum \cos 2πx_i

    The global minimum, 0 at the origin, is a kink: f falls to it at the slope 4/√d from every side.
    The gradient at the kink is defined as 0, and the Hessian as that of the smooth part, 4π²e/d
    times the identity; autograd gives the same. The dents, one near each point of integers, are not
    listed as minima. Usual domain: [−5, 5] in each coordinate; others take ±32.768.

    Parameters
    ----------
    dimension : int, default 2
        d, at least 1.

    Raises
    ------
    TypeError, ValueError
        ``dimension`` is no integer, or below 1.

    References
    ----------
    Ackley, *A Connectionist Machine for Genetic Hillclimbing*, Kluwer 1987.

    Examples
    --------
    >>> f = ackley()
    >>> f(torch.zeros(2)), f.gradient(torch.zeros(2))
    (tensor(0.), tensor([0., 0.]))
    """
    check_integer(dimension=dimension)
    formula = "−20 exp(−√(Σxᵢ²/d)/5) − exp(Σcos(2πxᵢ)/d) + 20 + e"
    minimum = Minimum((0.0,) * dimension, 0.0, True)
    return _Ackley("ackley", formula, ((-_REACH, _REACH),) * dimension, (minimum,))


@dataclass(frozen=True)
class _Ackley(Function):
    def _value(self, points: Tensor) -> Tensor:
        # expm1(x) is exp(x) − 1 without cancellation for small x, which is near the origin.
        cone = -20 * torch.expm1(-0.2 * _radius(points))
        return cone - math.e * torch.expm1(_waves(points) - 1)

    def _gradient(self, points: Tensor) -> Tensor:
        away, _ = self._away(points)
        steepness = 4 * torch.exp(-0.2 * _radius(points))[..., None]
        return steepness * away - torch.exp(_waves(points))[..., None] * self._tilt(points)

    def _hessian(self, points: Tensor) -> Tensor:
        d = self.dimension
        away, bend = self._away(points)
        falling = torch.exp(-0.2 * _radius(points))[..., None, None]
        cone = falling * (4 * bend - 0.8 * _outer(away))
        cosines = torch.cos(2 * math.pi * points)
        dents = _outer(self._tilt(points)) - torch.diag_embed(4 * math.pi**2 / d * cosines)
        return cone - torch.exp(_waves(points))[..., None, None] * dents

    def _away(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradient and the Hessian of r, both 0 at the kink."""
        d, r = self.dimension, _radius(points)[..., None]
        kink = r == 0
        inverse = torch.where(kink, 0.0, 1 / torch.where(kink, 1.0, r))
        away = points * inverse / d
        identity = torch.eye(d, dtype=points.dtype, device=points.device)
        return away, inverse[..., None] * (identity / d - _outer(away))

    def _tilt(self, points: Tensor) -> Tensor:
        """Return the gradient of c."""
        return -2 * math.pi / self.dimension * torch.sin(2 * math.pi * points)


def _radius(points: Tensor) -> Tensor:
    """Return r in such a way that autograd gives a derivative of 0, not NaN, at the origin."""
    square = points.square().mean(-1)
    kink = square == 0
    return torch.where(kink, 0.0, torch.sqrt(torch.where(kink, 1.0, square)))


def _waves(points: Tensor) -> Tensor:
    return torch.cos(2 * math.pi * points).mean(-1)


def _outer(vectors: Tensor) -> Tensor:
    return vectors[..., :, None] * vectors[..., None, :]
