"""What all tests share."""

import os

import pytest
import torch

# Triton reads it when it is imported: without a GPU its kernels are interpreted.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """On small tensors threads wait for each other longer than they compute."""
    torch.set_num_threads(1)
