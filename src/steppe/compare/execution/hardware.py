"""Describe the hardware of a worker in words; it is stored with each trial.

A report says so if the trials ran on different hardware: their times cannot be compared then.
"""

import os
import platform

import torch

from steppe._shared.messages import plural


def hardware_label(device: str, threads: int, processes: int = 1) -> str:
    """Describe the hardware of a worker as far as its times depend on it.

    Parameters
    ----------
    device : str
        A torch device.
    threads : int
        CPU threads.
    processes : int, default 1
        Processes that train together, each on such a device.

    Examples
    --------
    >>> hardware_label("mps", 2)
    '2 threads of a mps'
    """
    if processes > 1:
        return f"{processes} × {hardware_label(device, threads)}"
    if device.startswith("cuda"):
        return str(torch.cuda.get_device_name(torch.device(device)))
    kind = f"{platform.machine()} CPU with {os.cpu_count()} cores" if device == "cpu" else device
    return f"{plural(threads, 'thread')} of a {kind}"
