"""Write the numbers of a benchmark to a JSON file."""

import json
import platform
from collections.abc import Container, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import numba
import torch

import steppe
from steppe._shared.devices import hardware_name
from steppe._shared.files import write_text
from steppe._shared.messages import plural
from steppe.bench.benchmark import BenchmarkPlan, Outcome
from steppe.bench.disturbance import disturbed
from steppe.bench.failure import Failure
from steppe.bench.first_step import FirstStep
from steppe.bench.measurement import Measurement
from steppe.bench.presets import PEERS


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
            "device": hardware_name(benchmark.device),
            "threads": benchmark.threads,
            **_versions(benchmark),
            "not_installed": benchmark.not_installed,
        },
        "steps": [_fields(one, doubtful) for one in measured],
        "first_steps": [asdict(one) for one in outcomes if isinstance(one, FirstStep)],
        "failures": [asdict(one) for one in outcomes if isinstance(one, Failure)],
    }
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def machine_line(benchmark: BenchmarkPlan) -> str:
    """Return on what a benchmark ran, as one line: hardware, threads and versions."""
    versions = (f"{name} {version}" for name, version in _versions(benchmark).items())
    where = f"{hardware_name(benchmark.device)}, {plural(benchmark.threads, 'CPU thread')}"
    return f"{where}; {', '.join(versions)}"


def _versions(benchmark: BenchmarkPlan) -> dict[str, str]:
    """Return the versions of what runs, those of the peers' packages among them."""
    measured = {each.cls.__module__.partition(".")[0] for each in benchmark.optimizers}
    peers = dict.fromkeys(each.package for each in PEERS.values() if each.package in measured)
    return {
        "steppe": steppe.__version__,
        "torch": torch.__version__,
        "numba": numba.__version__,
        "python": platform.python_version(),
        **{package: version(package) for package in peers},
    }


def _fields(one: Measurement, doubtful: Container[Measurement]) -> dict[str, object]:
    return {
        **asdict(one),
        "ratio": one.ratio._asdict(),
        "excess": one.excess,
        "copy_ratio": one.copy_ratio,
        "extra": one.extra,
        "disturbed": one in doubtful,
    }
