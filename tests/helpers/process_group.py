"""Processes that share a test's work."""

import atexit
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from helpers.warm_python import WarmProcess, start

PATIENCE_S = 300


@contextmanager
def started(script: str, folder: Path, count: int) -> Iterator[list[WarmProcess]]:
    """Run a file in processes that :func:`join`, with rank and folder; none outlives the block.

    Sets of names are in another order in every other process, as on different machines.
    """
    with ExitStack() as ending:
        processes = []
        for rank in range(count):
            processes.append(start(script, str(rank), folder, hash_seed=rank % 2))
            ending.callback(processes[-1].kill)
        yield processes


def results_of(script: str, folder: Path, count: int) -> list[Any]:
    """Run a file in such processes to their end; load what they saved."""
    with started(script, folder, count) as processes:
        printed = [process.wait(PATIENCE_S) for process in processes]
    assert all(process.returncode == 0 for process in processes), "\n".join(printed)
    return [torch.load(folder / f"rank{rank}") for rank in range(count)]


def results_of_two(script: str, folder: Path) -> list[Any]:
    """Run a file in two processes."""
    return results_of(script, folder, 2)


def join(rank: int, folder: Path, count: int) -> None:
    """Become one of the processes that work together."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=count
    )


def leave() -> None:
    """End a process that joined, before the interpreter is taken down.

    gloo's threads may let go of a last tensor while that happens, and then abort a process that
    has done all its work (https://github.com/pytorch/pytorch/pull/179291).
    """
    torch.distributed.destroy_process_group()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
