"""Time the first step in a new process, once with empty kernel caches and once with filled ones.

``steppe bench`` does so for each optimizer.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from tempfile import TemporaryDirectory

import torch

from steppe.bench.failure import Failure
from steppe.bench.optimizers import find_measured
from steppe.bench.shapes import uniform
from steppe.bench.timing import seconds

FIRST_STEP = "first step"

# Where steppe keeps its kernels, Numba the functions of steppe's own files, Triton its kernels, and
# torch.compile what it has compiled.
_CACHES = ("XDG_CACHE_HOME", "NUMBA_CACHE_DIR", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")


@dataclass(frozen=True)
class FirstStep:
    """Seconds of an optimizer's first step in a process, imports and construction left out.

    Attributes
    ----------
    optimizer : str
        The optimizer's name.
    compiling : float
        Seconds with empty caches, so that kernels are compiled.
    cached : float
        Seconds in the next process, which finds the compiled kernels.
    """

    optimizer: str
    compiling: float
    cached: float


def first_step(name: str, device: torch.device, threads: int) -> FirstStep | Failure:
    """Take an optimizer's first step in two processes, of which the second has a warm cache.

    Parameters
    ----------
    name : str
        The optimizer, as ``--optimizers`` names it.
    device : torch.device
        Where its four parameters of 10 000 elements lie.
    threads : int
        CPU threads.

    Returns
    -------
    FirstStep or Failure
        The times, or the last line of the error of a process that failed.
    """
    with TemporaryDirectory(prefix="steppe-bench-") as cache:
        try:
            compiling = _in_new_process(name, device, threads, cache)
            cached = _in_new_process(name, device, threads, cache)
        except subprocess.CalledProcessError as error:
            lines = error.stderr.splitlines() or [str(error)]
            return Failure(FIRST_STEP, name, lines[-1])
    return FirstStep(name, compiling, cached)


def _in_new_process(name: str, device: torch.device, threads: int, cache: str) -> float:
    done = subprocess.run(
        [sys.executable, "-m", __name__, name, str(device), str(threads)],
        env={**os.environ, **dict.fromkeys(_CACHES, cache)},
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout.split()[-1])


def _main(name: str, device: str, threads: str) -> None:
    torch.set_num_threads(int(threads))
    torch_device = torch.device(device)
    optimizer = find_measured(name).build(uniform(4, 10_000), torch_device)
    print(seconds(optimizer.step, torch_device))


if __name__ == "__main__":
    _main(*sys.argv[1:])
