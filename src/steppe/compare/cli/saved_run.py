"""What ``steppe profile`` does: rebuild a saved run, and measure the curvature where it ended."""

from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.optim import Optimizer

from steppe._shared.console import make_console
from steppe._shared.devices import find_device
from steppe._shared.messages import first_line
from steppe._shared.printable import printable
from steppe._shared.recipes import find_recipe
from steppe.compare.data.loading import head
from steppe.compare.metrics.curvature import batch_size_for
from steppe.compare.tasks import Task, find_task
from steppe.compare.training import checkpoint
from steppe.landscape import hessian, preconditioned, profile

Batches = list[tuple[Tensor, Tensor]]


def report_curvature(
    checkpoint_file: Path,
    task: str,
    *,
    own: str | None,
    network: str | None,
    samples: int | None,
    seed: int,
    device: str,
    threads: int | None,
    picture: Path,
    directory: Path | None,
) -> None:
    """Measure the curvature of a saved run, print its report, and write its figure.

    Parameters
    ----------
    checkpoint_file : Path
        A checkpoint of ``steppe compare``, or a ``state_dict`` of the task's model.
    task : str
        What it was trained on.
    own : str or None
        The only class, as "module:Class", that is imported because the checkpoint names it as its
        optimizer; None is no such class.
    network : str or None
        Its network; None is what the checkpoint says, or else the task's.
    samples : int or None
        Training samples to measure on; None is as many as studies take.
    seed : int
        Seed of the random vectors.
    device : str
        A torch device.
    threads : int or None
        CPU threads; None is the task's choice, or else torch's.
    picture : Path
        The PNG file to write.
    directory : Path or None
        Directory of the task's files; None is the task's own.

    Raises
    ------
    ValueError
        The checkpoint is of another task, or does not fit the network.
    OSError
        A file cannot be read or written.
    """
    console = make_console()
    found, where = find_task(task), find_device(device)
    torch.set_num_threads(threads or found.threads or torch.get_num_threads())
    content = _load(checkpoint_file, where, task)
    name = network or content.get("network", found.full.model)
    model = found.make(name).to(where)
    optimizer = _restored(model, content, checkpoint_file, task, console, own)
    batches = _batches(found, model, name, content, samples, directory, where)
    optimizer = _with_preconditioner(console, optimizer, model, found, batches)
    curvature = profile(model, found.loss, batches, optimizer, seed=seed)
    curvature.figure().savefig(picture, dpi=150)
    console.print(curvature.table(printable(f"{checkpoint_file.name}, {task}")))
    console.print(f"Figure: {picture}", soft_wrap=True, highlight=False)
    if not curvature.complete:
        console.print("Not all has converged, or was measured: see the table.")


def _load(path: Path, device: torch.device, task: str) -> dict[str, Any]:
    content: dict[str, Any] = checkpoint.load(path, device)
    if content.get("task", task) != task:
        raise ValueError(f"{path} was trained on {content['task']}, not on {task}")
    return content


def _batches(
    task: Task,
    model: nn.Module,
    network: str,
    content: dict[str, Any],
    samples: int | None,
    directory: Path | None,
    device: torch.device,
) -> Batches:
    """Return the first training samples of the run, without augmentation, on the device."""
    trained, length = content.get("samples"), content.get("length")
    data = task.data(directory, trained, length=length, model=network)
    few = head(data.plain, samples or task.curvature.samples, batch_size_for(model))
    return [(inputs.to(device), targets.to(device)) for inputs, targets in few]


def _with_preconditioner(
    console: Console, optimizer: Optimizer | None, model: nn.Module, task: Task, batches: Batches
) -> Optimizer | None:
    """Return the optimizer if it has a diagonal preconditioner; else say so."""
    try:
        if optimizer is not None:
            preconditioned(hessian(model, task.loss, batches), optimizer)
    except ValueError as error:
        console.print(f"Without its optimizer: {error}", markup=False, highlight=False)
        return None
    return optimizer


def _may_import(console: Console, name: str, own: str | None) -> bool:
    """Return whether the checkpoint's optimizer may be imported; if not, say how it could be."""
    if ":" not in name or name.partition("+")[0] == own:
        return True
    console.print(
        f"Without its optimizer: {name} is not imported unless you name it by --optimizer.",
        markup=False,
        highlight=False,
    )
    return False


def _restored(
    model: nn.Module,
    content: dict[str, Any],
    path: Path,
    task: str,
    console: Console,
    own: str | None,
) -> Optimizer | None:
    """Fill the model from a checkpoint; return its optimizer if it has one that may be imported."""
    try:
        model.load_state_dict(content["model"])
        if "optimizer" not in content or not _may_import(console, content["optimizer"], own):
            return None
        recipe = find_recipe(content["optimizer"])
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = recipe.build(trained, content["settings"], content["steps"])
        optimizer.load_state_dict(content["optimizer_state"])
    except ImportError:
        raise
    except Exception as error:  # what a file holds may be anything
        raise ValueError(f"{path} does not fit {task}: {first_line(error)}") from error
    return optimizer
