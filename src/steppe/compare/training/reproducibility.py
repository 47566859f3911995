"""The same numbers each time: seeds of epochs, and torch's settings while a run trains."""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from steppe.compare.training.run import RunContext

# Far more than a run has epochs, and no multiple of what lies between two seeds.
_BETWEEN_PROCESSES = 15_485_863


def epoch_seed(seed: int, epoch: int) -> int:
    """Return a seed for an epoch that no other run's epoch has, up to a million epochs.

    Parameters
    ----------
    seed : int
        The run's seed.
    epoch : int
        Counted from 0; −1 stands for the initial weights.

    Examples
    --------
    >>> epoch_seed(0, -1), epoch_seed(1, 0)
    (0, 1000004)
    """
    return seed * 1_000_003 + epoch + 1


def seed_epoch(seed: int, epoch: int, process: int) -> None:
    """Seed all generators for an epoch, so that a run can go on from any epoch.

    Processes of a launch draw different numbers, as their dropout must differ.

    Parameters
    ----------
    seed, epoch : int
        As in :func:`epoch_seed`.
    process : int
        The process's index in a distributed launch.
    """
    seed_everything(epoch_seed(seed, epoch) + process * _BETWEEN_PROCESSES)


def seed_everything(seed: int) -> None:
    """Seed torch's, NumPy's and Python's generators: a task's own code may draw from any."""
    torch.manual_seed(seed)
    # Legacy, but it is what a task's code draws from.
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)


@contextmanager
def reproducible(context: RunContext) -> Iterator[None]:
    """Compute the same numbers each time in the block; restore torch's settings after it.

    Restored are all random states, the default number format, the number of threads, and whether
    torch uses deterministic algorithms: what one optimizer changes is not to be another's.

    Parameters
    ----------
    context : RunContext
        Device and threads. Sums differ in their last bits with the number of threads.
    """
    device = torch.device(context.device)
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    if device.type == "cuda":
        # Without it cuBLAS may choose another order of sums each time, and torch refuses to run:
        # https://docs.nvidia.com/cuda/cublas/index.html#results-reproducibility
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    dtype = torch.get_default_dtype()
    of_numpy, of_python = np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        torch.set_num_threads(context.threads)
        torch.use_deterministic_algorithms(True)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        np.random.set_state(of_numpy)  # noqa: NPY002
        random.setstate(of_python)
        torch.set_default_dtype(dtype)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.set_num_threads(threads)
