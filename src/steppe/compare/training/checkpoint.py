"""Checkpoint files: of unfinished runs after each epoch, and of trained models.

``steppe profile`` loads the latter.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

import steppe
from steppe._shared.files import write_whole
from steppe._shared.hyperparameters import Settings
from steppe._shared.messages import first_line
from steppe.compare.records.json_format import from_json
from steppe.compare.training.run import Run


@dataclass(frozen=True)
class _Description:
    """What a finished run's checkpoint says of the run."""

    task: str
    network: str
    optimizer: str
    settings: Settings
    steps: int
    seed: int
    samples: int | None = None
    length: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


_KEYS = {"task", "network", "optimizer", "settings", "steps", "seed", "model", "optimizer_state"}


def checkpoint_path(directory: Path, run: Run) -> Path:
    """Return the path of a finished run's checkpoint."""
    return directory / "checkpoints" / f"{run.label}.pt"


def progress_path(directory: Path, run: Run) -> Path:
    """Return the path of an unfinished run's checkpoint, which is deleted at its end."""
    return directory / "unfinished" / f"{run.label}.pt"


def save(path: Path, run: Run, model: nn.Module, optimizer: Optimizer) -> None:
    """Write a finished run's checkpoint atomically: the weights that were evaluated.

    Raises
    ------
    OSError
        The file cannot be written.
    """
    write(
        path,
        {
            "steppe": steppe.__version__,
            "task": run.run_settings.task,
            "network": run.run_settings.model,
            "samples": run.run_settings.samples,
            "length": run.run_settings.length,
            "options": dict(run.run_settings.options),
            # Whose it is: studies that share a directory may have the same seeds and settings.
            "setup": run.run_settings.digest,
            "optimizer": run.recipe.name,
            "settings": dict(run.settings),
            "steps": run.own_settings.steps,
            "seed": run.seed,
            "model": model.state_dict(),
            "optimizer_state": optimizer.state_dict(),
        },
    )


def import_formats() -> None:
    """Import what torch reads and writes files with, which it does at the first file otherwise."""
    file = io.BytesIO()
    torch.save({}, file)
    file.seek(0)
    torch.load(file, weights_only=True)


def check(content: Mapping[str, Any]) -> None:
    """See that content can be written and read again.

    Raises
    ------
    ValueError
        It holds something that would have to be run to be read.
    """
    file = io.BytesIO()
    try:
        torch.save(dict(content), file)
        file.seek(0)
        torch.load(file, weights_only=True)
    except Exception as error:
        raise ValueError(
            f"its state cannot be saved and loaded: {first_line(error)}; it must hold tensors and "
            "plain values only"
        ) from error


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write tensors and plain values atomically: a killed run leaves the previous file."""
    write_whole(path, lambda file: torch.save(dict(content), file))


def read(path: Path, device: torch.device) -> dict[str, Any]:
    """Read tensors and plain values; nothing in the file is run.

    Raises
    ------
    ValueError
        The file is something else.
    OSError
        It cannot be opened.
    """
    # Before it is opened: a pipe would wait for a writer, and a device never end.
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is no checkpoint: it is no ordinary file")
    with path.open("rb") as file:
        try:
            found = torch.load(file, map_location=device, weights_only=True)
        # torch raises many kinds of errors for damaged files, OSError too where one is cut short.
        except Exception as error:
            raise ValueError(f"{path} is no checkpoint that can be loaded safely") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is no checkpoint: it holds a {type(found).__name__}")
    return found


def load(path: Path, device: torch.device) -> dict[str, Any]:
    """Read a checkpoint, or a model's bare ``state_dict``, which stands under "model" then.

    Raises
    ------
    ValueError
        The file is neither.
    OSError
        It cannot be opened.
    """
    found = read(path, device)
    if found.keys() >= _KEYS:
        _check(path, found)
        return found
    if found and all(map(torch.is_tensor, found.values())):
        return {"model": found}
    raise ValueError(f"{path} is neither a run of steppe compare nor a model's state_dict")


def _check(path: Path, content: Mapping[str, Any]) -> None:
    described = {each.name: content.get(each.name) for each in fields(_Description)}
    try:
        from_json(_Description, described)
    except ValueError as error:
        raise ValueError(f"{path} is no checkpoint of steppe compare: {error}") from error
