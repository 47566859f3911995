"""Products of an operator that are compared, as xᵀHy is yᵀHx, for trace and diagonal."""

import torch
from torch import Tensor

from steppe.landscape.operators.operator import Operator
from steppe.landscape.spectra._symmetry import SymmetryCheck

NOT_FINITE = "a product is not finite: the operator overflows"

_TINY = torch.finfo(torch.float64).tiny


class CheckedProducts:
    """Products that are compared: those of a block, and the first of each with the very first.

    Blocks have their own passes over the data.

    Attributes
    ----------
    operator : Operator
        Whose products are those of H, compared.
    symmetry : SymmetryCheck
        How far they are from a symmetric matrix's.
    largest : float
        The largest ‖Hx‖/‖x‖ so far, at most the largest eigenvalue.
    """

    def __init__(self, H: Operator) -> None:
        self._H, self.symmetry, self.largest = H, SymmetryCheck(H), 0.0
        self.operator = Operator(H.size, self._product, dtype=H.dtype, device=H.device)
        self._first: tuple[Tensor, Tensor] | None = None

    def _product(self, rows: Tensor) -> Tensor:
        images = self._H.rows(rows)
        if not images.isfinite().all():
            raise ValueError(NOT_FINITE)
        if self._first is None:
            self._first = rows[:1].clone(), images[:1].clone()
        left, right = torch.cat([self._first[0], rows]), torch.cat([self._first[1], images])
        inner = (left.double() @ right.double().T).cpu().numpy()
        lengths = left.double().norm(dim=1)
        # Of all blocks: what is left beside a subspace that has it all is rounding alone.
        stretches = right.double().norm(dim=1) / lengths.clamp(min=_TINY)
        self.largest = max(self.largest, float(stretches.max()))
        scale = float(lengths.max()) ** 2 * self.largest
        self.symmetry.compare(inner.ravel(), inner.T.ravel(), scale)
        return images
