"""What all tests share."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """On small tensors threads wait for each other longer than they compute."""
    torch.set_num_threads(1)
