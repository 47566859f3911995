"""Where a run ended: its model and its optimizer, in a file that others can load."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

import steppe
from steppe.commands.files import write_whole
from steppe.compare.run import Run

_KEYS = {"task", "optimizer", "lr", "switch_rate", "seed", "model", "optimizer_state"}


def checkpoint_path(directory: Path, run: Run) -> Path:
    """Return where a run's checkpoint lies: runs with other settings have other names."""
    digest = hashlib.sha256(run.settings.encode()).hexdigest()[:8]
    name = f"{run.setup.task.name}-{run.recipe.name}-seed{run.seed}-{digest}.pt"
    return directory / "checkpoints" / name.replace(":", ".")


def save(path: Path, run: Run, model: nn.Module, optimizer: Optimizer) -> None:
    """Write a checkpoint, whole or not at all.

    Raises
    ------
    OSError
        The file cannot be written.
    """
    setup = run.setup
    content = {
        "steppe": steppe.__version__,
        "task": setup.task.name,
        "optimizer": run.recipe.name,
        "lr": setup.lr,
        "switch_rate": setup.switch_rate,
        "seed": run.seed,
        "model": model.state_dict(),
        "optimizer_state": optimizer.state_dict(),
    }
    write_whole(path, lambda file: torch.save(content, file))


def load(path: Path, device: torch.device) -> dict[str, Any]:
    """Read a checkpoint, or a model's bare ``state_dict``, which stands under "model" then.

    Nothing in it is run: only tensors and plain values are read.

    Raises
    ------
    ValueError
        The file is neither.
    OSError
        It cannot be read.
    """
    try:
        found = torch.load(path, map_location=device, weights_only=True)
    except OSError:
        raise
    except Exception as error:  # what may be wrong with such a file has no class in common
        raise ValueError(f"{path} is no checkpoint that can be loaded safely") from error
    if isinstance(found, dict) and found.keys() >= _KEYS:
        return found
    if isinstance(found, dict) and found and all(map(torch.is_tensor, found.values())):
        return {"model": found}
    raise ValueError(f"{path} is neither a run of steppe compare nor a model's state_dict")
