"""A tensor's value, memory and shape, to be put back whatever is done to the tensor.

A forward pass may write into a buffer, resize it, or give it other memory by way of ``.data``.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class SavedTensor(NamedTuple):
    """A tensor, a view of the memory that it had, and a copy of its value.

    Examples
    --------
    >>> buffer = torch.ones(2)
    >>> saved = SavedTensor.of(buffer)
    >>> _ = buffer.resize_(3).fill_(7.0)
    >>> saved.restore(), buffer
    (True, tensor([1., 1.]))
    """

    tensor: Tensor
    place: Tensor
    value: Tensor
    version: int

    @classmethod
    def of(cls, tensor: Tensor) -> "SavedTensor":
        """Save a tensor as it is now."""
        place = tensor.detach()
        return cls(tensor, place, place.clone(), _version(tensor))

    @property
    def is_untouched(self) -> bool:
        """Whether nothing was written to it since, nor was it given another place.

        Writes by way of ``.data`` count no version: of these nothing is known.
        """
        return self.version == _version(self.tensor) >= 0 and self._is_in_place()

    @torch.no_grad()
    def restore(self) -> bool:
        """Put the value back, into the memory where it was; return whether it was another one."""
        if not self._is_in_place():
            self.tensor.data = self.place
        # A write raises the version that autograd checks: a graph which saved the tensor could no
        # longer be differentiated, even where the value stays the same.
        if not _is_plain(self.tensor) or not torch.equal(self.tensor, self.value):
            self.tensor.copy_(self.value)
            return True
        return False

    def _is_in_place(self) -> bool:
        return not _is_plain(self.tensor) or _place(self.tensor) == _place(self.place)


def can_be_saved(tensor: Tensor) -> bool:
    """Whether a tensor has numbers, of which each can be written."""
    return not tensor.is_meta and not is_expanded(tensor)


def is_expanded(tensor: Tensor) -> bool:
    """Whether elements share memory, in which case torch refuses in-place writes."""
    return _is_plain(tensor) and any(
        step == 0 and count > 1 for step, count in zip(tensor.stride(), tensor.shape, strict=True)
    )


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_nested


def _place(tensor: Tensor) -> tuple[object, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def _version(tensor: Tensor) -> int:
    # Tensors made in inference mode count no versions.
    return -1 if tensor.is_inference() else tensor._version
