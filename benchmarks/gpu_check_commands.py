"""What the check runs as commands: the tests for devices, and a study; and what it runs on."""

import platform
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from xml.etree import ElementTree

import torch
from gpu_check_sections import Found, Save

from steppe._shared.devices import hardware_name
from steppe._shared.source_hash import steppe_source
from steppe.compare import read_study

ROOT = Path(__file__).parents[1]

# Whose versions decide what runs.
_PACKAGES = ("torch", "triton", "numpy", "numba")


def machine(device: torch.device, small: bool, save: Save) -> Found:
    """Name the device, the versions and the code."""
    found: Found = {
        "device": hardware_name(device),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "commit": _printed("git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"),
        "source": steppe_source(),
    }
    if device.type == "cuda":
        found |= {
            "capability": ".".join(map(str, torch.cuda.get_device_capability(device))),
            "memory_bytes": torch.cuda.get_device_properties(device).total_memory,
            "cuda": torch.version.cuda,
            "driver": _printed(
                "nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"
            ),
            "nccl": _nccl_version(),
        }
    return found


def device_tests(device: torch.device, small: bool, save: Save) -> Found:
    """Run the tests that need a device; "missed" names those that fail, and skips on one."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        options = ["-q", "-p", "no:cacheprovider", "--tb=line", f"--junitxml={report}"]
        command = [sys.executable, "-m", "pytest", "tests/engines/test_gpu_device.py", *options]
        ended = subprocess.run(command, cwd=ROOT, check=False)
        if not report.exists():
            raise RuntimeError(f"pytest ended with status {ended.returncode} and without a report")
        suite = ElementTree.parse(report).getroot()
    found: Found = {"passed": 0, "skipped": 0, "missed": []}
    for case in suite.iter("testcase"):
        problem = next((each for each in case if each.tag in ("failure", "error")), None)
        if problem is not None:
            message = problem.get("message", "").splitlines()[0:1]
            found["missed"].append(": ".join([case.get("name", ""), *message]))
        else:
            found["passed" if case.find("skipped") is None else "skipped"] += 1
    if device.type == "cuda" and found["skipped"]:
        found["missed"].append(f"{found['skipped']} skipped, which a GPU should not be")
    return found


def study(device: torch.device, small: bool, save: Save) -> Found:
    """Compare two optimizers on digits under autocast; "missed" says what did not end."""
    found: Found = {"trials": {}, "missed": []}
    for precision in ("bf16",) if small else ("fp16", "bf16"):
        with tempfile.TemporaryDirectory() as folder:
            command = [
                *(sys.executable, "-m", "steppe", "compare", "digits"),
                *("--optimizers", "sgd,invadam", "--budget", "1", "--trials", "3"),
                *("--scale", "small", "--epochs", "1", "--samples", "128"),
                *("--precision", precision, "--device", device.type, "--workers", "1"),
                *("--out-dir", folder),
            ]
            subprocess.run(command, cwd=ROOT, check=True)
            results = read_study(str(Path(folder, "study.sqlite")))
        ended = [trial for trial in results.trials if trial.finite_outcome]
        found["trials"][precision] = len(ended)
        if not results.complete or not ended:
            found["missed"].append(f"{precision}: {len(ended)} trials ended")
        save(found)
    return found


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _nccl_version() -> str:
    return ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]


def _printed(*command: str) -> str | None:
    """Return what a command prints, or None where it is not installed or fails."""
    try:
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return ended.stdout.strip()
