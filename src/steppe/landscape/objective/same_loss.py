"""Refuse models whose loss changes by itself, where losses of several passes are compared.

Of spectra it is seen in the products, and marked; lines, planes and balls would be wrong unseen.
"""

from collections.abc import Callable

import torch
from torch import Tensor

# Kernels that add up in an order of chance differ by less, relative to their format's precision.
_ROUNDINGS = 64


class SameLoss:
    """Compares, once, a batch's loss with the same loss computed again.

    Examples
    --------
    >>> losses = iter(torch.tensor([1.0, 1.5]))
    >>> SameLoss().check(0, lambda: next(losses))
    Traceback (most recent call last):
    ValueError: the loss of batch 0 is 1, and computed again 1.5: ...
    """

    def __init__(self) -> None:
        self._is_verified = False

    def check(self, position: int, loss_of: Callable[[], Tensor]) -> None:
        """Check a batch's loss, unless one has been checked before.

        Parameters
        ----------
        position : int
            The batch's, for the error's message.
        loss_of : callable
            Computes the loss.

        Raises
        ------
        ValueError
            The loss differs.
        """
        if self._is_verified:
            return
        loss = loss_of()
        one, two = loss.item(), loss_of().item()
        if abs(one - two) > _ROUNDINGS * torch.finfo(loss.dtype).eps * abs(one):
            raise ValueError(
                f"the loss of batch {position} is {one:.8g}, and computed again {two:.8g}: the "
                "forward pass draws noise that cannot be set back, or changes a state of its own, "
                "so that losses cannot be compared; the global generators of torch, NumPy and "
                "Python are set back, and so is what modules hold in attributes"
            )
        self._is_verified = True
