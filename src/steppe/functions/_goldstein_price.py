"""Goldstein and Price's function: four minima of very different height."""

from dataclasses import dataclass

import torch
from torch import Tensor

from steppe.functions.function import Function, Minimum

# Both factors depend on the point through one number each, s = x + y and t = 2x − 3y.
_S = (1.0, 1.0)
_T = (2.0, -3.0)
_BOUNDS = ((-2.0, 2.0), (-2.0, 2.0))
# a(s) has its local minima at s = −1 and 2, and b(t) at t = 3 and 0.
_MINIMA = (
    Minimum((0.0, -1.0), 3.0, True),
    Minimum((-0.6, -0.4), 30.0, False),
    Minimum((1.8, 0.2), 84.0, False),
    Minimum((1.2, 0.8), 840.0, False),
)


def goldstein_price() -> Function:
    r"""Make Goldstein and Price's function of two variables, with four minima.

    .. math:: f(x, y) = \bigl[1 + (s + 1)^2 (19 - 14 s + 3 s^2)\bigr]
        \bigl[30 + t^2 (18 - 16 t + 3 t^2)\bigr], \qquad s = x + y, \quad t = 2 x - 3 y

    which is the usual form with its polynomials written in s and t. The minima, all listed: 3 at
    (0, −1), 30 at (−0.6, −0.4), 84 at (1.8, 0.2), 840 at (1.2, 0.8). Usual domain: [−2, 2]².

    References
    ----------
    Goldstein and Price, *On Descent from Local Minima*, Mathematics of Computation 25, 1971.

    Examples
    --------
    >>> goldstein_price()(torch.tensor([0.0, -1.0]))
    tensor(3.)
    """
    formula = "[1 + (s+1)²(19 − 14s + 3s²)]·[30 + t²(18 − 16t + 3t²)], s = x + y, t = 2x − 3y"
    return _GoldsteinPrice("goldstein-price", formula, _BOUNDS, _MINIMA)


@dataclass(frozen=True)
class _GoldsteinPrice(Function):
    def _value(self, points: Tensor) -> Tensor:
        x, y = points.unbind(-1)
        return _a(x + y)[0] * _b(2 * x - 3 * y)[0]

    def _gradient(self, points: Tensor) -> Tensor:
        x, y = points.unbind(-1)
        a, a1, _ = _a(x + y)
        b, b1, _ = _b(2 * x - 3 * y)
        s, t = points.new_tensor(_S), points.new_tensor(_T)
        return (a1 * b)[..., None] * s + (a * b1)[..., None] * t

    def _hessian(self, points: Tensor) -> Tensor:
        x, y = points.unbind(-1)
        a, a1, a2 = _a(x + y)
        b, b1, b2 = _b(2 * x - 3 * y)
        s, t = points.new_tensor(_S), points.new_tensor(_T)
        mixed = torch.outer(s, t) + torch.outer(t, s)
        return (
            (a2 * b)[..., None, None] * torch.outer(s, s)
            + (a * b2)[..., None, None] * torch.outer(t, t)
            + (a1 * b1)[..., None, None] * mixed
        )


def _a(s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the first factor and its two derivatives."""
    return (
        1 + (s + 1) ** 2 * (19 - 14 * s + 3 * s**2),
        12 * (s + 1) * (s - 1) * (s - 2),
        36 * s**2 - 48 * s - 12,
    )


def _b(t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the second factor and its two derivatives."""
    return (
        30 + t**2 * (18 - 16 * t + 3 * t**2),
        12 * t * (t - 1) * (t - 3),
        36 * t**2 - 96 * t + 36,
    )
