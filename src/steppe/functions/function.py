"""What every test function offers."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Minimum:
    """A strict local minimum.

    Attributes
    ----------
    point : tuple of float
        Where it is.
    value : float
        The function's value there.
    is_global : bool
        Whether the function is nowhere lower.
    """

    point: tuple[float, ...]
    value: float
    is_global: bool


@dataclass(frozen=True)
class Function(ABC):
    """A function of a few parameters whose minima are known.

    It takes points of shape (..., dimension), of any floating-point dtype on any device, can be
    differentiated by autograd and ``torch.func``, and has its derivatives in closed form as well.

    Attributes
    ----------
    name : str
        By which :func:`find_function` finds it.
    formula : str
        One line.
    bounds : tuple of (float, float)
        The lower and upper end of the usual domain, for each coordinate. The function goes on
        outside.
    minima : tuple of Minimum
        All the global ones, first. Of the others, all or none, as the function's factory says.
    """

    name: str
    formula: str
    bounds: tuple[tuple[float, float], ...]
    minima: tuple[Minimum, ...]

    @property
    def dimension(self) -> int:
        """The number of coordinates."""
        return len(self.bounds)

    def __call__(self, points: Tensor) -> Tensor:
        """Return the values at points of shape (..., dimension), in the shape (...).

        Raises
        ------
        TypeError
            The points are not floating-point numbers.
        ValueError
            Their last dimension is not this function's.
        """
        return self._value(self._checked(points))

    def gradient(self, points: Tensor) -> Tensor:
        """Return the gradients in closed form, of the shape of the points: (..., dimension).

        Raises
        ------
        TypeError, ValueError
            As a call does.
        """
        return self._gradient(self._checked(points))

    def hessian(self, points: Tensor) -> Tensor:
        """Return the Hessians in closed form, of shape (..., dimension, dimension).

        Raises
        ------
        TypeError, ValueError
            As a call does.
        """
        return self._hessian(self._checked(points))

    def _checked(self, points: Tensor) -> Tensor:
        if not points.is_floating_point():
            raise TypeError(f"points must be floating-point numbers, got {points.dtype}")
        if points.dim() == 0 or points.shape[-1] != self.dimension:
            raise ValueError(
                f"points must be of shape (..., {self.dimension}) for {self.name}, "
                f"got {tuple(points.shape)}"
            )
        return points

    @abstractmethod
    def _value(self, points: Tensor) -> Tensor: ...

    @abstractmethod
    def _gradient(self, points: Tensor) -> Tensor: ...

    @abstractmethod
    def _hessian(self, points: Tensor) -> Tensor: ...
