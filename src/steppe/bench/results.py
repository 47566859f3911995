"""Write the numbers of a benchmark to a JSON file."""

import json
import platform
from collections.abc import Container, Sequence
from dataclasses import asdict
from pathlib import Path

import numba
import torch

import steppe
from steppe._shared.files import write_text
from steppe.bench.benchmark import BenchmarkPlan, Outcome
from steppe.bench.disturbance import disturbed
from steppe.bench.failure import Failure
from steppe.bench.first_step import FirstStep
from steppe.bench.measurement import Measurement


def write(benchmark: BenchmarkPlan, outcomes: Sequence[Outcome], path: Path) -> None:
    """Write conditions and outcomes of a benchmark. A failure leaves an old file as it was.

    Raises
    ------
    OSError
        The file cannot be written.
    """
    measured = [one for one in outcomes if isinstance(one, Measurement)]
    doubtful = disturbed(measured)
    content = {
        "setup": {
            "models": benchmark.models,
            "optimizers": [each.name for each in benchmark.optimizers],
            "steps": benchmark.steps,
            "device": device_name(benchmark.device),
            "threads": benchmark.threads,
            "steppe": steppe.__version__,
            "torch": torch.__version__,
            "numba": numba.__version__,
            "python": platform.python_version(),
        },
        "steps": [_fields(one, doubtful) for one in measured],
        "first_steps": [asdict(one) for one in outcomes if isinstance(one, FirstStep)],
        "failures": [asdict(one) for one in outcomes if isinstance(one, Failure)],
    }
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def device_name(device: torch.device) -> str:
    """Return the name of an accelerator's model, or of the processor's architecture."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()})"


def _fields(one: Measurement, doubtful: Container[Measurement]) -> dict[str, object]:
    return {
        **asdict(one),
        "ratio": one.ratio._asdict(),
        "excess": one.excess,
        "extra": one.extra,
        "disturbed": one in doubtful,
    }
