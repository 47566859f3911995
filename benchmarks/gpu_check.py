"""All that only a GPU can tell of steppe, in one command of at most eight minutes.

python benchmarks/gpu_check.py [SECTION…] [--device cuda] [--small] [--out FILE.json]

Each section runs in a process of its own, with a time limit: one that fails, hangs or is killed
is recorded as such, and the others run. Writes docs/results/gpu-check.json after each section, and
at the end the figures of docs/engines.md. Sections that are named are measured anew, and the
others in the file are kept if they were measured with the same code.

``--device cpu --small`` runs what a CPU can, to try the script itself: the CPU's engine stands in
for the GPU's, and a step for its CUDA graph. Ends with status 1 if a section has not run to its
end, or has found something that is not as it should be.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import cyclopts
import torch
from cells import check_same
from gpu_check_page import PAGE, RESULT, rewritten
from gpu_check_sections import SECTIONS, Section, problems

from steppe._shared.console import make_console, refusals
from steppe._shared.files import write_text
from steppe._shared.messages import shortened
from steppe._shared.names import unknown_name_message
from steppe._shared.source_hash import steppe_source
from steppe._shared.tables import TextTable

HERE = Path(__file__).parent
ROOT = HERE.parent

Device = Literal["cuda", "cpu"]

# Characters of what a section has printed that are kept if it fails.
_KEPT = 1500


def main(
    *names: Annotated[str, cyclopts.Parameter(name="SECTION")],
    device: Device = "cuda",
    small: Annotated[bool, cyclopts.Parameter(negative="")] = False,
    out: Path = RESULT,
) -> None:
    """Run the sections one after the other, and print what came of them.

    Parameters
    ----------
    names
        Sections to run. Default: all.
    device
        The device to check.
    small
        Take small sizes and few cases.
    out
        The JSON file. Pages are written for the default one only.
    """
    with refusals():
        _check(names, device)
        settings: dict[str, Any] = {
            "device": device,
            "small": small,
            "torch": torch.__version__,
            "steppe": steppe_source(),
        }
        content = _begun(out if names else None, settings)
    for name in names or SECTIONS:
        print(f"{name}: {SECTIONS[name].question}", flush=True)
        found = run_section(SECTIONS[name], device, small)
        content["sections"][name] = found
        write_text(out, json.dumps(content, indent=1) + "\n")
        print(f"{name}: {found['status']}, {found['seconds']:.0f} s", flush=True)
    make_console().print(summary(content["sections"]))
    if out == RESULT and device == "cuda" and not small:
        write_text(PAGE, rewritten(PAGE.read_text(encoding="utf-8")))
    if any(each["status"] != "passed" for each in content["sections"].values()):
        raise SystemExit(1)


def run_section(section: Section, device: Device, small: bool) -> dict[str, Any]:
    """Run a section in a process of its own; return its status, and what it found.

    The status is "passed", "missed" (what is not as it should be is listed), "failed", "timed out"
    or "killed". All but the first two have what the section printed last as their "error".
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "found.json")
        options = ["--device", device, "--out", str(out), *(["--small"] if small else [])]
        command = [sys.executable, str(HERE / "gpu_check_sections.py"), section.function, *options]
        start = time.monotonic()
        code, printed = _watched(command, section.limit_s, _environment(device))
        seconds = time.monotonic() - start
        written = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    result = {"seconds": round(seconds, 1), "found": written.get("found", {})}
    # A process that has written all it found may still fail to end: gloo's threads abort some.
    if written.get("complete"):
        return {"status": "missed" if result["found"].get("missed") else "passed", **result}
    status = "timed out" if code is None else "killed" if code < 0 else "failed"
    error = printed.replace(f"{ROOT}/", "").replace(sys.prefix, "…").strip()[-_KEPT:]
    return {"status": status, "error": error, **result}


def summary(sections: Mapping[str, Mapping[str, Any]]) -> TextTable:
    """Return what came of each section, a line each."""
    table = TextTable("GPU check", "section")
    for heading in ("status", "seconds", "what is not as it should be"):
        table.add_column(heading)
    for name, each in sections.items():
        wrong = problems(each)
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        said = f"{shortened(wrong[0], 200)}{more}" if wrong else ""
        table.add_row(name, each["status"], f"{each['seconds']:.0f}", said)
    return table


def _check(names: tuple[str, ...], device: Device) -> None:
    for name in names:
        if name not in SECTIONS:
            raise ValueError(unknown_name_message("section", name, SECTIONS))
    # Does not touch the device: what a section leaves of its memory is the section's.
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device 'cuda' cannot be used here: torch sees no GPU")


def _begun(out: Path | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a file has so far; refuse one that other code has measured."""
    if out is None or not out.exists():
        return {"settings": settings, "sections": {}}
    content: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    check_same(out, content["settings"], settings)
    return content


def _environment(device: Device) -> dict[str, str]:
    """Return the environment of a section: it finds what tests share, and compiles for a GPU."""
    paths = [str(ROOT / "tests"), *filter(None, sys.path)]
    found = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    if device == "cuda":
        found.pop("TRITON_INTERPRET", None)
    return found


def _watched(
    command: list[str], limit_s: float, environment: dict[str, str]
) -> tuple[int | None, str]:
    """Run a command; return its status, None if it took too long, and what it printed.

    What it has started ends with it.
    """
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=ROOT, env=environment, start_new_session=True
        )
        try:
            code: int | None = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.seek(0)
        return code, log.read()


if __name__ == "__main__":
    cyclopts.run(main)
