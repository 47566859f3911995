"""Work on large tensors piece by piece, so that temporaries stay in a core's cache.

Norms and SAM's ascent use it on CPUs.
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

#: Elements of a piece. What is made of one stays in a core's cache, and its memory is used again;
#: of more, the operating system takes memory back and hands it out anew, page by page.
PIECE = 1 << 17


def cache_chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield tensors of one shape as views of their pieces; on accelerators, whole.

    Examples
    --------
    >>> import torch
    >>> from steppe._engines.base.cache_chunks import PIECE, cache_chunks
    >>> [len(x) - PIECE for x, y in cache_chunks(torch.ones(PIECE + 1), torch.ones(PIECE + 1))]
    [0, -131071]
    """
    first: Any = tensors[0]
    is_large = first.numel() > PIECE and first.device.type == "cpu"
    if not (is_large and all(tensor.is_contiguous() for tensor in tensors)):
        yield tensors
        return
    flat: list[Any] = [tensor.view(-1) for tensor in tensors]
    yield from zip(*(tensor.split(PIECE) for tensor in flat), strict=True)
