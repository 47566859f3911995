"""Find a torch device by its name, or explain why it cannot be used.

The commands that take ``--device`` find theirs by it.
"""

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
