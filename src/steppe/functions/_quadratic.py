"""A quadratic with a given condition number."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from steppe._shared.validation import check_integer
from steppe.functions.function import Function, Minimum

_BOUNDS = (-2.0, 2.0)


@dataclass(frozen=True)
class Quadratic(Function):
    """A quadratic :class:`Function` with its curvatures.

    Attributes
    ----------
    curvatures : tuple of float
        The Hessian's eigenvalues, which are its diagonal elements.
    """

    curvatures: tuple[float, ...]

    def _value(self, points: Tensor) -> Tensor:
        return (points.new_tensor(self.curvatures) * points**2).sum(-1) / 2

    def _gradient(self, points: Tensor) -> Tensor:
        return points.new_tensor(self.curvatures) * points

    def _hessian(self, points: Tensor) -> Tensor:
        return torch.diag_embed(points.new_tensor(self.curvatures).expand(points.shape))


def quadratic(condition_number: float = 100.0, dimension: int = 2) -> Quadratic:
    r"""Make a quadratic whose curvatures are evenly spaced on a logarithmic scale from 1 to κ.

    .. math:: f(x) = \tfrac12 \sum_{i=1}^d λ_i x_i^2, \qquad λ_i = κ^{(i-1)/(d-1)}

    Usual domain: [−2, 2] in each coordinate.

    Parameters
    ----------
    condition_number : float, default 100.0
        κ, at least 1.
    dimension : int, default 2
        d, at least 2.

    Raises
    ------
    TypeError, ValueError
        ``dimension`` is no integer, or an argument is too small.

    Examples
    --------
    >>> quadratic(100.0, 3).curvatures
    (1.0, 10.0, 100.0)
    """
    check_integer(dimension=dimension, least=2)
    if not 1 <= condition_number < math.inf:
        raise ValueError(f"condition_number must be a finite number ≥ 1, got {condition_number}")
    powers = [index / (dimension - 1) for index in range(dimension)]
    return Quadratic(
        "quadratic",
        f"½ Σ λᵢxᵢ², λ from 1 to {condition_number:g}",
        (_BOUNDS,) * dimension,
        (Minimum((0.0,) * dimension, 0.0, True),),
        tuple(float(condition_number**power) for power in powers),
    )
