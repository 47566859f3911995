"""Runs compute the same numbers each time, and leave torch as they have found it."""

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from steppe.compare.training.reproducibility import epoch_seed, reproducible
from steppe.compare.training.run import RunContext


@pytest.fixture
def context() -> RunContext:
    return RunContext(Path(), threads=torch.get_num_threads() + 1)


def settings() -> tuple[object, ...]:
    return (
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.get_rng_state().tolist(),
        torch.get_default_dtype(),
        np.random.get_state()[1].tolist(),  # noqa: NPY002
        random.getstate(),
        dict(os.environ),
    )


def fail_within(context: RunContext) -> None:
    with reproducible(context):
        assert torch.get_num_threads() == context.threads
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
        # What only cuBLAS reads is set for GPUs alone.
        assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
        torch.rand(3)
        np.random.rand(3)  # noqa: NPY002
        random.random()
        torch.set_default_dtype(torch.float64)
        raise KeyError


@pytest.mark.parametrize("warn_only", [False, True])
def test_torch_is_left_as_it_was_found(
    context: RunContext, warn_only: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    torch.use_deterministic_algorithms(warn_only, warn_only=warn_only)
    try:
        before = settings()
        with pytest.raises(KeyError):
            fail_within(context)
        assert settings() == before
    finally:
        torch.use_deterministic_algorithms(False)


def test_no_two_epochs_share_a_seed() -> None:
    seeds = [epoch_seed(seed, epoch) for seed in range(20) for epoch in range(-1, 50)]
    assert len(set(seeds)) == len(seeds)
