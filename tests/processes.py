"""Two processes that share a test's work."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch


def results_of_two(script: str, folder: Path) -> list[Any]:
    """Run a file in two processes, with rank and folder; return what each saved as ``rank…``."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error", script, str(rank), str(folder)],
            # Tests run side by side: threads beyond one each would wait for one another.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert all(process.returncode == 0 for process in processes), "\n".join(errors)
    return [torch.load(folder / f"rank{rank}") for rank in range(2)]
