"""Refuse data that differ from pass to pass although their generators are set back.

An instrument that compares two passes would measure the difference between their data.
"""

import zlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_PLAIN = bool | int | float | str
# Objects that are no data.
_OPAQUE = type | ModuleType | nn.Module


class SameData:
    """The checksums of the first pass's batches, which those of all later passes must have.

    Parameters
    ----------
    data : iterable
        The batches. A list or a tuple holds the same batches at every pass, and is not checked.

    Examples
    --------
    >>> check = SameData(range(2))
    >>> check.batch(0, torch.ones(2)), check.end(1)
    (None, None)
    >>> check.batch(0, torch.zeros(2))
    Traceback (most recent call last):
    ValueError: batch 0 is not the same in every pass: ...
    """

    def __init__(self, data: Any) -> None:
        self._is_fixed = type(data) in (list, tuple)
        self._sums: list[int] = []
        self._count: int | None = None

    def batch(self, position: int, batch: Any) -> None:
        """Check one batch.

        Raises
        ------
        ValueError
            It is another one than in the first pass, or the first pass was shorter.
        """
        if self._is_fixed:
            return
        own = _checksum(batch)
        if self._count is not None and position >= self._count:
            self._refuse(f"data has more batches than the {self._count} of the first pass")
        if position == len(self._sums):
            self._sums.append(own)
        elif own != self._sums[position]:
            self._refuse(f"batch {position} is not the same in every pass")

    def end(self, count: int) -> None:
        """Check the number of batches.

        Raises
        ------
        ValueError
            The first pass had more.
        """
        if not self._is_fixed:
            if count < len(self._sums):
                self._refuse(
                    f"data has {count} batches in this pass, and had {len(self._sums)} before"
                )
            self._count = count

    @staticmethod
    def _refuse(what: str) -> None:
        raise ValueError(
            f"{what}: the data draw random numbers that cannot be set back, or can be gone through "
            "only once, and passes that differ measure no curvature; measure fixed batches, such "
            "as data = list(loader)"
        )


def _checksum(value: Any, start: int = 0, within: tuple[int, ...] = ()) -> int:
    """Return a checksum of all numbers in nested containers, and of other objects' tensors.

    ``within`` are the identities of the objects that hold the value.
    """
    if isinstance(value, Tensor):
        if value.is_nested:
            return _checksum(value.unbind(), start)
        if value.layout != torch.strided:
            whole = value.detach().to_sparse().coalesce()
            return _checksum((whole.indices(), whole.values()), start)
        plain = value.detach().resolve_conj().resolve_neg().cpu().contiguous()
        return zlib.crc32(plain.reshape(-1).view(torch.uint8).numpy().data, start)
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return zlib.crc32(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data, start)
    if isinstance(value, Mapping):
        value = list(value.items())
    if isinstance(value, tuple | list):
        for part in value:
            start = _checksum(part, start, within)
        return start
    if isinstance(value, _PLAIN):
        return zlib.crc32(repr(value).encode(), start)
    is_opaque = isinstance(value, _OPAQUE) or id(value) in within
    if hasattr(value, "__dict__") and not is_opaque:
        # An object's own numbers may be of other things than its data, such as times.
        parts = [part for part in vars(value).values() if not isinstance(part, _PLAIN)]
        return _checksum(parts, start, (*within, id(value)))
    return start
