"""The speed at which the machine copies memory, which the time of a step is held against."""

import torch

_SIZE = 2**28  # bytes: far more than any cache holds


class Copy:
    """A copy of a large tensor, made anew at each call.

    A copy before a step leaves the caches cold, as the forward and backward pass of training do.

    Parameters
    ----------
    device : torch.device
        The device whose memory is copied.
    size : int, default 2²⁸
        Bytes that are copied.

    Attributes
    ----------
    moved : int
        Bytes read and written by one copy; of the class, by one of the default size.
    """

    moved = 2 * _SIZE

    def __init__(self, device: torch.device, size: int = _SIZE) -> None:
        self.moved = 2 * size
        self._source = torch.ones(size // 4, dtype=torch.float32, device=device)
        self._target = torch.zeros_like(self._source)

    def __call__(self) -> None:
        """Copy once."""
        self._target.copy_(self._source)
