"""Defaults that users give torch, and that what is measured must not depend on."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

#: A device, or a number format. Meta stands for an accelerator: what lies there has no numbers.
DEFAULTS = ("meta", torch.float64, torch.bfloat16)


@contextmanager
def torch_default(default: str | torch.dtype) -> Iterator[None]:
    """Set torch's default device or number format in a block."""
    dtype = torch.get_default_dtype()
    try:
        if isinstance(default, torch.dtype):
            torch.set_default_dtype(default)
        else:
            torch.set_default_device(default)
        yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_default_device(None)
