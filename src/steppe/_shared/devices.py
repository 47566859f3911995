"""Find a torch device by its name, or explain why it cannot be used; and name its hardware.

The commands that take ``--device`` find theirs by it.
"""

import platform
from pathlib import Path

import torch


def find_device(name: str) -> torch.device:
    """Return the device of that name.

    Raises
    ------
    ValueError
        There is no such device, or this build of torch cannot use it.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} cannot be used here: {reason}") from error
    return device


def hardware_name(device: torch.device) -> str:
    """Return the name of a GPU's model, of the processor's, or of a device's type elsewhere."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return processor_name() if device.type == "cpu" else device.type


def processor_name() -> str:
    """Return the model of the processor, or its architecture where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(": ")[2] for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
