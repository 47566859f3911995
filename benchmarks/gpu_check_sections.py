"""The sections of ``gpu_check.py``, and the process that runs one of them.

python benchmarks/gpu_check_sections.py MODULE:FUNCTION --device cuda --out FILE.json [--small]

``gpu_check.py`` starts it with a time limit. What a section has found is in the file after each of
its cases, so that one that is stopped has lost nothing that it had finished.
"""

import json
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import cyclopts
import torch

from steppe._shared.files import write_text
from steppe._shared.json_values import json_ready

Found = dict[str, Any]
#: Called with what has been found so far.
Save = Callable[[Found], None]


class Section(NamedTuple):
    """A section of the check.

    Attributes
    ----------
    question
        What it asks.
    function
        ``module:function`` that answers, given the device, whether to be small, and how to save. It
        returns what it found; "missed" lists what is not as it should be.
    limit_s
        Seconds that it may take.
    """

    question: str
    function: str
    limit_s: int


#: In this order: what is measured first is there even if all later ones hang. Limits add up to the
#: eight minutes that a check may take.
SECTIONS = {
    "machine": Section("What was it measured on?", "gpu_check_commands:machine", 20),
    "bandwidth": Section(
        "Does a step move its bytes as fast as the device copies?", "gpu_check_speed:bandwidth", 80
    ),
    "host": Section(
        "How long is the host busy with a step?", "gpu_check_speed:host_time", 25
    ),
    "parity": Section(
        "Is every configuration, in every number format, plain torch's?",
        "gpu_check_parity:parity",
        115,
    ),
    "graphs": Section(
        "Do CUDA graphs replay steps, and does no step synchronise?",
        "gpu_check_graphs:graphs",
        75,
    ),
    "sam": Section(
        "What does SAM take around a pass, and is it the CPU's?", "gpu_check_sam:sam", 25
    ),
    "processes": Section(
        "Do FSDP2 and DDP, of one process, take the plain step?",
        "gpu_check_processes:processes",
        25,
    ),
    "tests": Section(
        "Do the tests for devices pass?", "gpu_check_commands:device_tests", 65
    ),
    "study": Section(
        "Does a study in half precision end?", "gpu_check_commands:study", 50
    ),
}  # fmt: skip


def problems(section: Mapping[str, Any]) -> list[str]:
    """Return what is not as it should be in a section that has run, and how it failed."""
    return [*section["found"].get("missed", []), *section.get("error", "").splitlines()[-1:]]


def main(
    function: str,
    *,
    device: Literal["cuda", "cpu"] = "cuda",
    out: Path,
    small: Annotated[bool, cyclopts.Parameter(negative="")] = False,
) -> None:
    """Run a section's function, and write what it has found as it goes."""

    def save(found: Found, *, complete: bool = False) -> None:
        write_text(out, json.dumps({"complete": complete, "found": json_ready(found)}))

    if device == "cuda":
        torch.cuda.set_device(0)
    found = imported(function)(_indexed(device), small, save)
    save(found, complete=True)


def imported(path: str) -> Callable[[torch.device, bool, Save], Found]:
    """Import what answers a section's question, as ``module:function``."""
    module, _, name = path.partition(":")
    found: Callable[[torch.device, bool, Save], Found] = getattr(import_module(module), name)
    return found


def _indexed(device: str) -> torch.device:
    # Process groups and device meshes tell devices by their index.
    return torch.device(device, 0) if device == "cuda" else torch.device(device)


if __name__ == "__main__":
    cyclopts.run(main)
