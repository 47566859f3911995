"""Let no step wait for the CUDA device: what synchronises raises."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def no_synchronisation() -> Iterator[None]:
    """Raise where the host would wait for the current CUDA device."""
    with warnings.catch_warnings():
        # Of the mode about itself, that it is a prototype.
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
