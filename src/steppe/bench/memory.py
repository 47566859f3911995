"""Measure how much more memory a step takes while it runs than before."""

import ctypes
import os
from pathlib import Path

import torch

from steppe.bench.timing import Action

# Linux reports the peak of resident memory in the one file, and resets the peak when 5 is written
# to the other: see proc_pid_status(5) and proc_pid_clear_refs(5).
_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


def peak_extra(action: Action, device: torch.device) -> int | None:
    """Return by how many bytes the peak of memory in use lies above the memory before an action.

    On CUDA the memory is that of torch's allocator, on a CPU the process's resident memory.

    Parameters
    ----------
    action : callable
        Called once, without arguments.
    device : torch.device
        The device whose memory is measured.

    Returns
    -------
    int or None
        None on other devices, and where the system does not report the peak.
    """
    if device.type == "cuda":
        return _peak_extra_cuda(action, device)
    if device.type == "cpu" and os.access(_CLEAR, os.W_OK):
        return _peak_extra_resident(action)
    return None


def _peak_extra_cuda(action: Action, device: torch.device) -> int:
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    action()
    return torch.cuda.max_memory_allocated(device) - before


def _peak_extra_resident(action: Action) -> int:
    # Memory that earlier actions freed may still be resident, and would hide what this one takes.
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):  # in glibc
        library.malloc_trim(0)
    _CLEAR.write_text(_RESET_PEAK)
    before = _peak_resident()
    action()
    return _peak_resident() - before


def _peak_resident() -> int:
    lines = _STATUS.read_text().splitlines()
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return 1024 * int(kilobytes)
