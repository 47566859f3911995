"""Rosenbrock's function: a narrow curved valley."""

from dataclasses import dataclass

import torch
from torch import Tensor

from steppe._shared.validation import check_integer
from steppe.functions.function import Function, Minimum

_BOUNDS = (-2.0, 2.0)


def rosenbrock(dimension: int = 2) -> Function:
    r"""Make Rosenbrock's function: a narrow valley along a parabola.

    .. math:: f(x) = \sum_{i<d} 100 (x_{i+1} - x_i^2)^2 + (1 - x_i)^2

    The global minimum is 0 at (1, …, 1), where in two dimensions the Hessian's condition number is
    2508. From four dimensions on there is another minimum near (−1, 1, …, 1), which is not listed.
    Usual domain here: [−2, 2] in each coordinate.

    Parameters
    ----------
    dimension : int, default 2
        d, at least 2.

    Raises
    ------
    TypeError, ValueError
        ``dimension`` is no integer, or below 2.

    References
    ----------
    Rosenbrock, *An Automatic Method for Finding the Greatest or Least Value of a Function*, The
    Computer Journal 3, 1960.

    Examples
    --------
    >>> rosenbrock()(torch.tensor([-1.0, 1.0]))
    tensor(4.)
    """
    check_integer(dimension=dimension, least=2)
    formula = "Σ 100(xᵢ₊₁ − xᵢ²)² + (1 − xᵢ)²"
    minimum = Minimum((1.0,) * dimension, 0.0, True)
    return _Rosenbrock("rosenbrock", formula, (_BOUNDS,) * dimension, (minimum,))


@dataclass(frozen=True)
class _Rosenbrock(Function):
    def _value(self, points: Tensor) -> Tensor:
        x, following = points[..., :-1], points[..., 1:]
        return (100 * (following - x**2) ** 2 + (1 - x) ** 2).sum(-1)

    def _gradient(self, points: Tensor) -> Tensor:
        x, following = points[..., :-1], points[..., 1:]
        off = following - x**2
        none = torch.zeros_like(points[..., :1])
        own = torch.cat([-400 * x * off - 2 * (1 - x), none], -1)
        return own + torch.cat([none, 200 * off], -1)

    def _hessian(self, points: Tensor) -> Tensor:
        x, following = points[..., :-1], points[..., 1:]
        none = torch.zeros_like(points[..., :1])
        own = torch.cat([1200 * x**2 - 400 * following + 2, none], -1)
        own = own + torch.cat([none, torch.full_like(x, 200.0)], -1)
        beside = -400 * x
        off = torch.diag_embed(beside, offset=1) + torch.diag_embed(beside, offset=-1)
        return torch.diag_embed(own) + off
