"""The six-hump camel function: six minima in three pairs."""

from dataclasses import dataclass

import torch
from torch import Tensor

from steppe.functions.function import Function, Minimum

_BOUNDS = ((-3.0, 3.0), (-2.0, 2.0))
# Point and value of one minimum of each pair ±(x, y), by Newton's method in float64.
_PAIRS = (
    ((0.08984201310031807, -0.7126564030207396), -1.0316284534898774),
    ((1.7036067149699814, -0.7960835686726252), -0.21546382438372036),
    ((1.6071047529201967, 0.5686514548841314), 2.1042503103112566),
)


def six_hump_camel() -> Function:
    r"""Make the six-hump camel, a function of two variables with six minima in three pairs.

    .. math:: f(x, y) = \bigl(4 - 2.1 x^2 + \tfrac13 x^4\bigr) x^2 + x y + (4 y^2 - 4) y^2

    f(−x, −y) = f(x, y). The minima, all listed: −1.0316 at ±(0.0898, −0.7127), −0.2155 at
    ±(1.7036, −0.7961), 2.1043 at ±(1.6071, 0.5687). Usual domain: [−3, 3] × [−2, 2].

    References
    ----------
    Dixon and Szegö, *Towards Global Optimisation 2*, North-Holland 1978.

    Examples
    --------
    >>> f = six_hump_camel()
    >>> [round(minimum.value, 4) for minimum in f.minima]
    [-1.0316, -1.0316, -0.2155, -0.2155, 2.1043, 2.1043]
    """
    formula = "(4 − 2.1x² + x⁴/3)x² + xy + (4y² − 4)y²"
    minima = tuple(
        Minimum((sign * x, sign * y), value, value < -1)
        for (x, y), value in _PAIRS
        for sign in (1, -1)
    )
    return _SixHumpCamel("six-hump-camel", formula, _BOUNDS, minima)


@dataclass(frozen=True)
class _SixHumpCamel(Function):
    def _value(self, points: Tensor) -> Tensor:
        x, y = points.unbind(-1)
        return (4 - 2.1 * x**2 + x**4 / 3) * x**2 + x * y + (4 * y**2 - 4) * y**2

    def _gradient(self, points: Tensor) -> Tensor:
        x, y = points.unbind(-1)
        return torch.stack(
            [8 * x - 8.4 * x**3 + 2 * x**5 + y, x - 8 * y + 16 * y**3],
            -1,
        )

    def _hessian(self, points: Tensor) -> Tensor:
        x, y = points.unbind(-1)
        own = torch.stack([8 - 25.2 * x**2 + 10 * x**4, 48 * y**2 - 8], -1)
        return torch.diag_embed(own) + points.new_tensor([[0.0, 1.0], [1.0, 0.0]])
