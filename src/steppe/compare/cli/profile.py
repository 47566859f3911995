"""The command ``steppe profile``: the report card of a saved run."""

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn
from torch.optim import Optimizer

from steppe._shared.cli_options import Data, Device
from steppe._shared.console import make_console, refusals
from steppe._shared.devices import usable
from steppe._shared.plurals import first_line
from steppe._shared.recipes import find_recipe
from steppe.compare.data.loading import head
from steppe.compare.metrics.curvature import batch_size_for
from steppe.compare.tasks import find_task
from steppe.compare.training import checkpoint
from steppe.landscape import hessian, preconditioned
from steppe.landscape import profile as measure


def profile(
    checkpoint_file: Annotated[
        Path,
        typer.Argument(
            metavar="CHECKPOINT",
            help="A file that steppe compare has left in OUT/checkpoints, or a state_dict of the "
            "task's model, saved with torch.save.",
        ),
    ],
    task: Annotated[str, typer.Option(help="What it was trained on: digits, mnist-5k, …")],
    network: Annotated[
        str | None,
        typer.Option(
            "--model", help="Its network. Default: what the checkpoint says, or the task's."
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            help="Training samples to measure on, the first ones; at least 1. Default: as many as "
            "steppe compare does."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the random vectors.")] = 0,
    device: Device = "cpu",
    threads: Annotated[int | None, typer.Option(help="CPU threads. Default: the task's.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="The figure. Default: CHECKPOINT with .png at its end.")
    ] = None,
    data: Data = None,
) -> None:
    """Print how flat the minimum is where a run ended, and draw it.

    Eigenvalues, trace and spectral density of the Hessian, sharpness, and, if the checkpoint holds
    an optimizer with a diagonal preconditioner, whether its steps are stable there. Ctrl-C keeps
    what has been measured.
    """
    console = make_console()
    with refusals():
        if samples is not None and samples < 1:
            raise ValueError(f"samples must be at least 1, got {samples}")
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        found, where = find_task(task), usable(device)
        torch.set_num_threads(threads or found.threads or torch.get_num_threads())
        content = checkpoint.load(checkpoint_file, where)
        if content.get("task", task) != task:
            raise ValueError(f"{checkpoint_file} was trained on {content['task']}, not on {task}")
        name = network or content.get("network", found.full.model)
        model = found.make(name).to(where)
        optimizer = _restored(model, content, checkpoint_file, task)
        trained, length = content.get("samples"), content.get("length")
        plain = found.data(data, trained, length=length, model=name).plain
        few = head(plain, samples or found.curvature.samples, batch_size_for(model))
        batches = [(inputs.to(where), targets.to(where)) for inputs, targets in few]
        try:
            if optimizer is not None:
                preconditioned(hessian(model, found.loss, batches), optimizer)
        except ValueError as error:
            console.print(f"Without its optimizer: {error}", markup=False, highlight=False)
            optimizer = None
        card = measure(model, found.loss, batches, optimizer, seed=seed)
        picture = out or checkpoint_file.with_suffix(".png")
        console.print(card.table(f"{checkpoint_file.name}, {task}"))
        card.figure().savefig(picture, dpi=150)
    console.print(f"Figure: {picture}", soft_wrap=True, highlight=False)
    if not card.complete:
        console.print("Not all has converged, or was measured: see the table.")


def _restored(model: nn.Module, content: dict[str, Any], path: Path, task: str) -> Optimizer | None:
    """Fill the model from a checkpoint; return its optimizer if it has one."""
    try:
        model.load_state_dict(content["model"])
        if "optimizer" not in content:
            return None
        recipe = find_recipe(content["optimizer"])
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = recipe.build(trained, content["settings"], content["steps"])
        optimizer.load_state_dict(content["optimizer_state"])
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{path} does not fit {task}: {first_line(error)}") from error
    return optimizer
