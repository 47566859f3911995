"""Notice products that no symmetric operator has, and say where they come from.

Eigenvalues, density and trace report it as ``asymmetry`` and do not call a result converged.
"""

import numpy as np
import torch
from torch import Tensor

from steppe._shared.array_types import Floats
from steppe.landscape.operators.operator import Operator

# Of confident networks in float32, whose curvature is a difference of nearly equal numbers, the
# eigenvalues' errors are up to 3.5 times the asymmetry of products, over the largest.
_OF_ASYMMETRY = 8


class SymmetryCheck:
    """How far products are from a symmetric operator's, relative to its largest eigenvalue.

    Of a symmetric H the products with orthonormal vectors satisfy vᵢᵀHvⱼ = vⱼᵀHvᵢ: the component of
    a product along an earlier vector is known from that vector's own product. In Lanczos' method
    all but two of these are 0, so that they cost nothing to look at.

    Parameters
    ----------
    H : Operator
        The operator; its ``rounding`` is what its number format explains.
    """

    def __init__(self, H: Operator) -> None:
        self._operator = H
        self.asymmetry = 0.0

    def compare(self, found: Floats, expected: Floats, scale: float) -> None:
        """Take note of components that should be equal, given the largest eigenvalue so far."""
        # What is not finite is refused where it is used.
        if len(found) and 0.0 < scale < np.inf and np.isfinite(found).all():
            self.asymmetry = max(self.asymmetry, float(np.abs(found - expected).max()) / scale)

    @property
    def precision(self) -> float:
        """The relative error of products: what the operator says of it, or the asymmetry shows."""
        return max(self._operator.precision, _OF_ASYMMETRY * self.asymmetry)

    @property
    def is_broken(self) -> bool:
        """Whether the asymmetry is more than rounding."""
        return not self.asymmetry <= self._operator.rounding

    def reason(self, vector: Tensor) -> str:
        """Return in words what makes products wrong: nothing, or found from one more pair of them.

        Parameters
        ----------
        vector : Tensor
            A vector of shape (size,), of which two products are taken if the check has failed.
        """
        if not self.is_broken:
            return ""
        row = vector.unsqueeze(0)
        one, two = self._operator.rows(row).clone(), self._operator.rows(row)
        change = float((one - two).norm() / one.norm().clamp(min=torch.finfo(one.dtype).tiny))
        what = f"products are those of no symmetric matrix, by {self.asymmetry:.1e} of the largest"
        if change > self._operator.rounding:
            return (
                f"{what} eigenvalue: two products with one vector differ by {change:.1e}; the "
                "forward pass draws noise that cannot be set back, or changes a state of its own, "
                "or the data change"
            )
        return (
            f"{what} eigenvalue: a derivative of the model is wrong, or rounded off; take "
            "product='finite-differences', or model.double()"
        )
