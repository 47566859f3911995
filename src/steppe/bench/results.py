"""The numbers of a benchmark, as a file."""

import json
import platform
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numba
import torch

import steppe
from steppe.bench.benchmark import BenchmarkPlan, Outcome
from steppe.bench.disturbance import disturbed
from steppe.bench.failure import Failure
from steppe.bench.first_step import FirstStep
from steppe.bench.measurement import Measurement


def write(setup: BenchmarkPlan, outcomes: Sequence[Outcome], path: Path) -> None:
    """Write everything to a JSON file, whole or not at all.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    measured = [one for one in outcomes if isinstance(one, Measurement)]
    doubtful = disturbed(measured)
    content = {
        "setup": {
            "models": setup.models,
            "optimizers": [contender.name for contender in setup.contenders],
            "steps": setup.rounds,
            "device": device_name(setup.device),
            "threads": setup.threads,
            "steppe": steppe.__version__,
            "torch": torch.__version__,
            "numba": numba.__version__,
            "python": platform.python_version(),
        },
        "steps": [_fields(one, doubtful) for one in measured],
        "first_steps": [asdict(one) for one in outcomes if isinstance(one, FirstStep)],
        "failures": [asdict(one) for one in outcomes if isinstance(one, Failure)],
    }
    with replacing(path) as partial:
        partial.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Hand out a path beside ``path``; what was written there takes its place at the end."""
    partial = path.with_name(f".partial-{path.name}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


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
