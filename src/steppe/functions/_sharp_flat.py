"""A function of one variable with a flat and a sharp minimum of equal depth."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from steppe._shared.validation import check_positive
from steppe.functions.function import Function, Minimum

# The usual domain ends where the outer walls are this many barriers high.
_WALL = 2.0


@dataclass(frozen=True)
class SharpFlat(Function):
    """A :class:`Function` of one variable with a flat and a sharp minimum, and its parameters.

    Attributes
    ----------
    sharpness, flatness : float
        The curvatures at the sharp and at the flat minimum.
    barrier : float
        The value at the top between the minima, which are 0.
    saddle : float
        The magnitude of the curvature at the top.
    """

    sharpness: float
    flatness: float
    barrier: float
    saddle: float

    @property
    def flat(self) -> Minimum:
        """The flat minimum, at x < 0."""
        return self.minima[0]

    @property
    def sharp(self) -> Minimum:
        """The sharp minimum, at x > 0."""
        return self.minima[1]

    @property
    def top(self) -> float:
        """The x of the top between the minima."""
        return 0.0

    @property
    def joints(self) -> tuple[float, float]:
        """The x where the flat and the sharp minimum's parabolas meet the barrier's."""
        return (
            self.flat.point[0] * self.flatness / (self.flatness + self.saddle),
            self.sharp.point[0] * self.sharpness / (self.sharpness + self.saddle),
        )

    def _value(self, points: Tensor) -> Tensor:
        x = points[..., 0]
        return self._joined(
            x,
            self.flatness * (x - self.flat.point[0]) ** 2 / 2,
            self.barrier - self.saddle * x**2 / 2,
            self.sharpness * (x - self.sharp.point[0]) ** 2 / 2,
        )

    def _gradient(self, points: Tensor) -> Tensor:
        return self._joined(
            points,
            self.flatness * (points - self.flat.point[0]),
            -self.saddle * points,
            self.sharpness * (points - self.sharp.point[0]),
        )

    def _hessian(self, points: Tensor) -> Tensor:
        same = torch.ones_like(points)
        curvatures = self.flatness * same, -self.saddle * same, self.sharpness * same
        return self._joined(points, *curvatures)[..., None]

    def _joined(self, x: Tensor, flat: Tensor, top: Tensor, sharp: Tensor) -> Tensor:
        left, right = self.joints
        return torch.where(x <= left, flat, torch.where(x >= right, sharp, top))


def sharp_flat(
    sharpness: float = 100.0, flatness: float = 1.0, barrier: float = 1.0, saddle: float = 1.0
) -> SharpFlat:
    r"""Make a function of one variable with a flat and a sharp minimum, both of value 0.

    It is this project's own. Three parabolas are joined with a continuous slope: two wells, of
    curvatures ``flatness`` (at x < 0) and ``sharpness`` (at x > 0), which continue outside, and
    between them the barrier b − ½·saddle·x². A minimum of curvature h has the distance from the top

    .. math:: D = \sqrt{2 \, \mathrm{barrier} \, (h + \mathrm{saddle}) /
        (h \cdot \mathrm{saddle})}

    and from its joint the distance D·saddle/(h + saddle). So the barrier and the curvatures at
    minima and top, which the theory of escape depends on, can be chosen. The usual domain ends
    where the outer walls are two barriers high.

    Parameters
    ----------
    sharpness, flatness : float, default 100.0 and 1.0
        Curvatures of the wells, positive. ``sharpness`` need not be the larger one.
    barrier : float, default 1.0
        Height of the top above both minima, positive.
    saddle : float, default 1.0
        Magnitude of the curvature at the top, positive.

    Raises
    ------
    TypeError, ValueError
        An argument is not a finite positive number.

    Examples
    --------
    >>> f = sharp_flat(sharpness=3.0)
    >>> f.flat.point, f.top, f(torch.tensor([f.top]))
    ((-2.0,), 0.0, tensor(1.))
    >>> f.hessian(torch.tensor([f.sharp.point])).item()
    3.0
    """
    check_positive(sharpness=sharpness, flatness=flatness, barrier=barrier, saddle=saddle)

    def distance(curvature: float) -> float:
        return math.sqrt(2 * barrier * (curvature + saddle) / (curvature * saddle))

    flat, sharp = -distance(flatness), distance(sharpness)
    walls = (math.sqrt(2 * _WALL * barrier / curvature) for curvature in (flatness, sharpness))
    left, right = walls
    return SharpFlat(
        "sharp-flat",
        f"{flatness / 2:g}(x + {-flat:.4g})², {barrier:g} − {saddle / 2:g}x² and "
        f"{sharpness / 2:g}(x − {sharp:.4g})², joined with one slope",
        ((flat - left, sharp + right),),
        (Minimum((flat,), 0.0, True), Minimum((sharp,), 0.0, True)),
        sharpness,
        flatness,
        barrier,
        saddle,
    )
