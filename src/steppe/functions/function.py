"""The interface of a test function, and of a minimum of one."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Minimum:
    """A strict local minimum.

    Attributes
    ----------
    point : tuple of float
        Its coordinates.
    value : float
        The function's value at the point.
    is_global : bool
        Whether the function is lower nowhere else.
    """

    point: tuple[float, ...]
    value: float
    is_global: bool


@dataclass(frozen=True)
class Function(ABC):
    """A function of a few variables whose minima are known.

    It takes points of shape (..., dimension), of any floating-point dtype on any device. Autograd
    and ``torch.func`` can differentiate it; it also has its derivatives in closed form.

    Attributes
    ----------
    name : str
        The name for :func:`find_function`.
    formula : str
        The formula in one line of text.
    bounds : tuple of (float, float)
        The lower and upper end of the usual domain, for each coordinate. The function is defined
        outside, too.
    minima : tuple of Minimum
        All global minima first; then all or none of the other minima, as the docstring of the
        function's factory says.

    Examples
    --------
    >>> import torch
    >>> from steppe.functions import rosenbrock
    >>> f = rosenbrock()
    >>> points = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    >>> f(points), f.gradient(points)[1], f.hessian(points).shape
    (tensor([0., 1.]), tensor([-2.,  0.]), torch.Size([2, 2, 2]))
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
        """Return the values at points of shape (..., dimension), as a tensor of shape (...).

        Raises
        ------
        TypeError
            The points are not floating-point numbers.
        ValueError
            The last dimension of the points is not the function's dimension.
        """
        return self._value(self._checked(points))

    def gradient(self, points: Tensor) -> Tensor:
        """Return the gradients in closed form, of the points' shape (..., dimension).

        Raises
        ------
        TypeError, ValueError
            As when the function is called.
        """
        return self._gradient(self._checked(points))

    def hessian(self, points: Tensor) -> Tensor:
        """Return the Hessians in closed form, of shape (..., dimension, dimension).

        Raises
        ------
        TypeError, ValueError
            As when the function is called.
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
