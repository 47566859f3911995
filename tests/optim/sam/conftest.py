"""Small models and tensors, quickly."""

import gc
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _fast() -> Iterator[None]:
    """Save what tests on small tensors and models need not pay for.

    Threads that wait for each other take longer than the arithmetic, and SAM's search for layers
    need not pass over what was there before the test.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.freeze()
    yield
    gc.unfreeze()
    torch.set_num_threads(threads)
