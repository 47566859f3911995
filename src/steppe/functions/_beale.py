"""Beale's function: a curved valley between steep corners."""

from dataclasses import dataclass

import torch
from torch import Tensor

from steppe.functions.function import Function, Minimum

# c_k of the three residuals, and k.
_TARGETS = (1.5, 2.25, 2.625)
_POWERS = (1.0, 2.0, 3.0)
_BOUNDS = ((-4.5, 4.5), (-4.5, 4.5))


def beale() -> Function:
    r"""Make Beale's function of two variables: a curved valley between steep corners.

    .. math:: f(x, y) = \sum_{k=1}^3 \bigl[c_k - x (1 - y^k)\bigr]^2,
        \qquad c = (1.5, \; 2.25, \; 2.625)

    Its only minimum is 0 at (3, 0.5). Usual domain: [−4.5, 4.5]².

    References
    ----------
    Beale, *On an Iterative Method for Finding a Local Minimum of a Function of More than One
    Variable*, Princeton 1958.

    Examples
    --------
    >>> beale()(torch.tensor([3.0, 0.5]))
    tensor(0.)
    """
    formula = "(1.5 − x + xy)² + (2.25 − x + xy²)² + (2.625 − x + xy³)²"
    return _Beale("beale", formula, _BOUNDS, (Minimum((3.0, 0.5), 0.0, True),))


@dataclass(frozen=True)
class _Beale(Function):
    def _value(self, points: Tensor) -> Tensor:
        return self._residuals(points)[0].square().sum(-1)

    def _gradient(self, points: Tensor) -> Tensor:
        residuals, slopes, _ = self._residuals(points)
        return 2 * (residuals[..., None] * slopes).sum(-2)

    def _hessian(self, points: Tensor) -> Tensor:
        residuals, slopes, bends = self._residuals(points)
        squares = slopes[..., :, None] * slopes[..., None, :]
        return 2 * (squares + residuals[..., None, None] * bends).sum(-3)

    def _residuals(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the three residuals, their gradients and their Hessians.

        The shapes are (..., 3), (..., 3, 2) and (..., 3, 2, 2).
        """
        x, y = points[..., :1], points[..., 1:]
        k = points.new_tensor(_POWERS)
        one = torch.ones_like(y)
        powers = torch.cat([one, y, y**2, y**3], -1)
        last = powers[..., :-1]
        before = torch.cat([torch.zeros_like(y), one, y], -1)
        residuals = points.new_tensor(_TARGETS) - x * (1 - powers[..., 1:])
        slopes = torch.stack([powers[..., 1:] - 1, k * x * last], -1)
        mixed = k * last
        along_y = k * (k - 1) * x * before
        rows = torch.stack([torch.zeros_like(mixed), mixed], -1), torch.stack([mixed, along_y], -1)
        return residuals, slopes, torch.stack(rows, -2)
