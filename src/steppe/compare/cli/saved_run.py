"""What ``steppe profile`` does: rebuild a saved run, and measure it where it ended."""

from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn
from torch.optim import Optimizer

from steppe._shared.console import make_console
from steppe._shared.devices import find_device
from steppe._shared.messages import first_line
from steppe._shared.printable import printable
from steppe._shared.recipes import find_recipe
from steppe.compare.cli.saved_robustness import saved_robustness
from steppe.compare.tasks.source import find_task
from steppe.compare.training import checkpoint
from steppe.compare.training.differentiable import differentiable
from steppe.landscape import Operator, hessian, preconditioned, profile


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
    robustness: bool,
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
    robustness : bool
        Whether it is measured with changed weights and inputs too, with a figure beside the other.

    Raises
    ------
    ValueError
        The checkpoint is of another task, or does not fit the network.
    OSError
        A file cannot be read or written.
    """
    console = make_console()
    source, where = find_task(task), find_device(device)
    content: dict[str, Any] = checkpoint.load(checkpoint_file, where)
    found = source.task({**content.get("options", {}), **_asked(network, directory)})
    if content.get("task", found.name) != found.name:
        raise ValueError(f"{checkpoint_file} was trained on {content['task']}, not on {found.name}")
    torch.set_num_threads(threads or found.threads or torch.get_num_threads())
    model = found.model().to(where)
    optimizer = _restored(model, content, checkpoint_file, found.name, console, own)
    few = samples or found.curvature.samples
    loaded = found.load()
    trained, loss, batches, weight = differentiable(loaded, model, where, few)
    # Where the task does not say what its loss is divided by, the instrument finds it.
    by = weight if found.weight else None
    optimizer = _with_preconditioner(console, optimizer, hessian(trained, loss, batches, weight=by))
    curvature = profile(trained, loss, batches, optimizer, weight=by, seed=seed)
    curvature.figure().savefig(picture, dpi=150)
    console.print(curvature.table(printable(f"{checkpoint_file.name}, {found.name}")))
    console.print(f"Figure: {picture}", soft_wrap=True, highlight=False)
    if not curvature.complete:
        console.print("Not all has converged, or was measured: see the table.")
    if robustness:
        kept = saved_robustness(loaded, model, where, content.get("length") or 1)
        beside = picture.with_stem(f"{picture.stem}-robustness")
        figure = kept.plot().get_figure(root=True)
        assert figure is not None
        figure.savefig(beside, dpi=150)
        console.print(kept.table(f"Robustness on {kept.samples} test samples"))
        console.print(f"Figure: {beside}", soft_wrap=True, highlight=False)


def _asked(network: str | None, directory: Path | None) -> dict[str, Any]:
    asked = {"model": network, "data": directory}
    return {name: value for name, value in asked.items() if value is not None}


def _with_preconditioner(
    console: Console,
    optimizer: Optimizer | None,
    H: Operator,
) -> Optimizer | None:
    """Return the optimizer if it has a diagonal preconditioner; else say so."""
    try:
        if optimizer is not None:
            preconditioned(H, optimizer)
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
        optimizer = recipe.build_for(model, content["settings"], content["steps"])
        optimizer.load_state_dict(content["optimizer_state"])
    except ImportError:
        raise
    except Exception as error:  # what a file holds may be anything
        raise ValueError(f"{path} does not fit {task}: {first_line(error)}") from error
    return optimizer
