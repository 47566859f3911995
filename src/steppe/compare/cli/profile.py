"""The command ``steppe profile``: the curvature report of a saved run."""

from pathlib import Path
from typing import Annotated, Any

import torch
from cyclopts import Parameter
from rich.console import Console
from torch import Tensor, nn
from torch.optim import Optimizer

from steppe._shared.cli_options import AT_LEAST_ONE, OUTPUT, WHERE, Count, Data, Device
from steppe._shared.console import make_console, refusals
from steppe._shared.devices import find_device
from steppe._shared.plurals import first_line
from steppe._shared.printable import printable
from steppe._shared.recipes import find_recipe
from steppe.compare.data.loading import head
from steppe.compare.metrics.curvature import batch_size_for
from steppe.compare.tasks import Task, find_task
from steppe.compare.training import checkpoint
from steppe.landscape import hessian, preconditioned
from steppe.landscape import profile as measure

Batches = list[tuple[Tensor, Tensor]]


def profile(
    checkpoint_file: Annotated[Path, Parameter(metavar="CHECKPOINT")],
    /,
    *,
    task: str,
    own: Annotated[str | None, Parameter("--optimizer", metavar="MODULE:CLASS")] = None,
    network: Annotated[str | None, Parameter("--model", metavar="NAME")] = None,
    samples: Count = None,
    seed: int = 0,
    device: Device = "cpu",
    threads: Annotated[Count, WHERE] = None,
    out: Annotated[Path | None, OUTPUT, Parameter("--figure", metavar="FILE")] = None,
    data: Data = None,
) -> None:
    """Measure the curvature of the loss where a run ended, print it, and draw it.

    Eigenvalues, trace and spectral density of the Hessian, sharpness, and, if the checkpoint holds
    an optimizer with a diagonal preconditioner, whether its steps are stable there. Ctrl-C keeps
    what has been measured.

    Parameters
    ----------
    checkpoint_file
        A file that steppe compare has left in OUT_DIR/checkpoints, or a state_dict of the task's
        model, saved with torch.save.
    task
        What it was trained on: digits, mnist-5k, …
    own
        The checkpoint's optimizer, if it is a class of your own. Code that a file names is imported
        only if you name it too.
    network
        Its network. Default: what the checkpoint says, or the task's.
    samples
        Training samples to measure on, the first ones. Default: as many as steppe compare takes.
    seed
        Seed of the random vectors.
    threads
        CPU threads. Default: the task's.
    out
        File of the figure. Default: CHECKPOINT with .png at its end.

    Examples
    --------
    The run that ended with seed 0:

        steppe profile results/digits/checkpoints/digits-adamw-test-seed0-1a2b3c4d.pt --task digits
    """
    console = make_console()
    with refusals():
        AT_LEAST_ONE.check("samples", samples)
        AT_LEAST_ONE.check("threads", threads)
        found, where = find_task(task), find_device(device)
        torch.set_num_threads(threads or found.threads or torch.get_num_threads())
        content = _load(checkpoint_file, where, task)
        name = network or content.get("network", found.full.model)
        model = found.make(name).to(where)
        optimizer = _restored(model, content, checkpoint_file, task, console, own)
        batches = _batches(found, model, name, content, samples, data, where)
        optimizer = _with_preconditioner(console, optimizer, model, found, batches)
        curvature = measure(model, found.loss, batches, optimizer, seed=seed)
        picture = out or checkpoint_file.with_suffix(".png")
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
