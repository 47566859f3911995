"""Lévy's function: a bowl with ripples."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from steppe._shared.validation import check_integer
from steppe.functions.function import Function, Minimum

_REACH = 10.0
# ∂w/∂x.
_SCALE = 0.25


def levy(dimension: int = 2) -> Function:
    r"""Make Lévy's function: a bowl with ripples along each coordinate.

    .. math:: f(x) = \sin^2 πw_1 + \sum_{i<d} (w_i - 1)^2 \bigl[1 + 10 \sin^2(πw_i + 1)\bigr]
        + (w_d - 1)^2 \bigl[1 + \sin^2 2πw_d\bigr], \qquad w = 1 + (x - 1)/4

    It is a sum of functions of one coordinate each, so its Hessian is diagonal. The global minimum
    is 0 at (1, …, 1); the many others are not listed. Usual domain: [−10, 10] in each coordinate.

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
    Levy and Montalvo, *The Tunneling Algorithm for the Global Minimization of Functions*, SIAM
    Journal on Scientific and Statistical Computing 6, 1985; in the form of Laguna and Martí, 2005.

    Examples
    --------
    >>> levy()(torch.ones(2))
    tensor(0.)
    """
    check_integer(dimension=dimension)
    formula = "sin²πw₁ + Σ(wᵢ−1)²(1 + 10 sin²(πwᵢ+1)) + (w_d−1)²(1 + sin²2πw_d), w = 1 + (x−1)/4"
    minimum = Minimum((1.0,) * dimension, 0.0, True)
    return _Levy("levy", formula, ((-_REACH, _REACH),) * dimension, (minimum,))


@dataclass(frozen=True)
class _Levy(Function):
    def _value(self, points: Tensor) -> Tensor:
        u, first, height, phase, speed = self._terms(points)
        ripples = first * torch.sin(math.pi * u).square()
        return (ripples + u**2 * (1 + height * torch.sin(phase + speed * u).square())).sum(-1)

    def _gradient(self, points: Tensor) -> Tensor:
        u, first, height, phase, speed = self._terms(points)
        angle = phase + speed * u
        slope = first * math.pi * torch.sin(2 * math.pi * u)
        slope = slope + 2 * u * (1 + height * torch.sin(angle).square())
        return _SCALE * (slope + u**2 * height * speed * torch.sin(2 * angle))

    def _hessian(self, points: Tensor) -> Tensor:
        u, first, height, phase, speed = self._terms(points)
        angle = phase + speed * u
        bend = first * 2 * math.pi**2 * torch.cos(2 * math.pi * u)
        bend = bend + 2 * (1 + height * torch.sin(angle).square())
        bend = bend + 4 * u * height * speed * torch.sin(2 * angle)
        bend = bend + 2 * u**2 * height * speed**2 * torch.cos(2 * angle)
        return torch.diag_embed(_SCALE**2 * bend)

    def _terms(self, points: Tensor) -> tuple[Tensor, ...]:
        """Return u = w − 1, and the coefficients of each coordinate's term.

        A term is first·sin²(πu) + u²[1 + height·sin²(phase + speed·u)]. Written in u it is exactly
        0 at the minimum, where sin(πw) is not, because of rounding.
        """
        others = self.dimension - 1
        u = _SCALE * (points - 1)
        first = points.new_tensor([1.0] + [0.0] * others)
        height = points.new_tensor([10.0] * others + [1.0])
        phase = points.new_tensor([math.pi + 1] * others + [0.0])
        speed = points.new_tensor([math.pi] * others + [2 * math.pi])
        return u, first, height, phase, speed
