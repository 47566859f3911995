"""The interface between curvature and spectra: a symmetric matrix known by its products.

Operators implement it; eigenvalues, traces and densities need nothing else.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from steppe._shared.validation import check_integer

# Measured on networks of all kinds, products are at most ten times their format's precision from
# symmetric; a thousandth of noise in the data makes 3e-4 in float32.
_ROUNDINGS = 64

# Products in 16 bits are 2e-3 from symmetric. With more than this, nothing is known.
MOST_ASYMMETRY = 0.05


def asymmetry_of(precision: float) -> float:
    """Return the asymmetry that a number format explains, relative to the largest eigenvalue.

    Parameters
    ----------
    precision : float
        The format's ε, as ``torch.finfo(dtype).eps``.

    Examples
    --------
    >>> asymmetry_of(torch.finfo(torch.float32).eps) < 1e-5
    True
    >>> asymmetry_of(torch.finfo(torch.bfloat16).eps)
    0.05
    """
    return min(MOST_ASYMMETRY, max(1e-10, _ROUNDINGS * precision))


class Operator:
    """A symmetric matrix of which only products with vectors are known.

    Parameters
    ----------
    size : int
        Number of rows, and of columns.
    product : callable
        Maps a block of vectors, the rows of a tensor of shape (count, size), to their products, in
        the same shape. It must not write into the block.
    dtype : torch.dtype, default torch.float32
        Number format of vectors: float32 or float64.
    device : torch.device or str, default "cpu"
        Device of vectors.
    params : sequence of Tensor, optional
        The model's parameters that the vectors' elements belong to, in their order. Default: the
        operator does not come from a model.
    held : callable, optional
        Returns a context manager. Inside it the caller promises that the matrix does not change, so
        that products may reuse intermediate results. Default: nothing is reused.
    rounding : callable, optional
        Returns by how much products may differ from a symmetric matrix's, relative to its largest
        eigenvalue, because of how they are computed. Default: 64 times the precision of ``dtype``.
    precision : callable, optional
        Returns the relative error of products: ε of the number format of fewest bits that they are
        computed in. Error bars are no smaller. Default: products are exact.

    Attributes
    ----------
    products : int
        Number of products so far: of a block, the number of its vectors.

    Raises
    ------
    ValueError
        ``dtype`` is neither float32 nor float64, or ``size`` below 1.
    TypeError
        ``size`` is no integer.

    Examples
    --------
    >>> import torch
    >>> matrix = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
    >>> A = Operator(2, lambda rows: rows @ matrix)
    >>> A.matvec(torch.tensor([1.0, 0.0])), A.products
    (tensor([2., 1.]), 1)
    """

    def __init__(
        self,
        size: int,
        product: Callable[[Tensor], Tensor],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        params: Sequence[Tensor] | None = None,
        held: Callable[[], AbstractContextManager[None]] = nullcontext,
        rounding: Callable[[], float] | None = None,
        precision: Callable[[], float] | None = None,
    ) -> None:
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype={dtype} must be torch.float32 or torch.float64")
        check_integer(size=size)
        self.size, self.dtype, self.device = int(size), dtype, torch.device(device)
        self.params, self.held = params, held
        self.products = 0
        self._product, self._rounding, self._precision = product, rounding, precision

    @property
    def rounding(self) -> float:
        """By how much products may differ from a symmetric matrix's, of the largest eigenvalue."""
        if self._rounding is None:
            return asymmetry_of(torch.finfo(self.dtype).eps)
        return self._rounding()

    @property
    def precision(self) -> float:
        """The relative error of products; of a model's, it is known once one has been computed."""
        return 0.0 if self._precision is None else self._precision()

    @property
    def shape(self) -> tuple[int, int]:
        """``(size, size)``."""
        return self.size, self.size

    def matvec(self, vector: Tensor) -> Tensor:
        """Return the product with a vector of shape (size,).

        Raises
        ------
        TypeError
            The vector is no tensor of real numbers.
        ValueError
            It has another shape.
        """
        _check_real("vector", vector)
        if vector.shape != (self.size,):
            raise ValueError(f"vector has shape {tuple(vector.shape)}, expected ({self.size},)")
        return self.rows(vector.unsqueeze(0))[0]

    def matmat(self, block: Tensor) -> Tensor:
        """Return the products with the columns of a block of shape (size, count).

        It costs less than one by one: what does not depend on the vector is computed once.

        Raises
        ------
        TypeError
            The block is no tensor of real numbers.
        ValueError
            It has another shape.
        """
        _check_real("block", block)
        if block.ndim != 2 or block.shape[0] != self.size:
            raise ValueError(f"block has shape {tuple(block.shape)}, expected ({self.size}, count)")
        return self.rows(block.T).T

    def rows(self, block: Tensor) -> Tensor:
        """Return the products with the rows of a block of shape (count, size), as rows."""
        if not len(block):
            return block.to(self.device, self.dtype)
        images = self._product(block.to(self.device, self.dtype))
        self.products += len(block)
        return images

    def __matmul__(self, other: Tensor) -> Tensor:
        """Return the product with a vector of shape (size,), or with a block's columns."""
        is_block = isinstance(other, Tensor) and other.ndim != 1
        return self.matmat(other) if is_block else self.matvec(other)


def check_operator(H: Operator) -> None:
    """Refuse what is no operator.

    Raises
    ------
    TypeError
        It is none.
    """
    if not isinstance(H, Operator):
        raise TypeError(
            f"H must be an operator, as hessian() or ggn() returns, got {type(H).__name__}"
        )


def _check_real(name: str, value: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if value.is_complex():
        raise TypeError(f"{name} must be a tensor of real numbers, got {value.dtype}")
