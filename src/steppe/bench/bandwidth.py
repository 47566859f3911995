"""The machine's own speed: how fast it copies memory."""

import torch

_SIZE = 2**28  # bytes: far beyond any cache


class Copy:
    """A copy of a large tensor. Done before a step, it leaves the caches cold, as training does.

    Attributes
    ----------
    moved : int
        Bytes read and written by one copy.
    """

    moved = 2 * _SIZE

    def __init__(self, device: torch.device) -> None:
        self._source = torch.ones(_SIZE // 4, device=device)
        self._target = torch.zeros_like(self._source)

    def __call__(self) -> None:
        """Copy once."""
        self._target.copy_(self._source)
