"""Accelerate, set up for a run: device, processes, mixed precision, trackers."""

import math
from dataclasses import asdict
from typing import TYPE_CHECKING

import torch

from steppe.compare.records.choices import file_name
from steppe.compare.records.results import Epoch, FinalScores
from steppe.compare.training.run import Run, RunContext

if TYPE_CHECKING:
    from accelerate import Accelerator


def make_accelerator(run: Run, context: RunContext) -> "Accelerator":
    """Set up Accelerate: device, processes, mixed precision, trackers.

    Parameters
    ----------
    run : Run
        Its precision is used, and its label names it in trackers.
    context : RunContext
        Device and tracker.

    Raises
    ------
    ModuleNotFoundError
        If Accelerate is not installed.
    ValueError
        If it would train on another device than ``context.device``.
    """
    from accelerate import Accelerator, DataLoaderConfiguration
    from accelerate.state import AcceleratorState

    device = torch.device(context.device)
    if device.index is not None:
        # Accelerate takes torch's current device.
        torch.accelerator.set_device_index(device.index)
    # The state is shared by the whole process, and refuses another precision than its first.
    AcceleratorState._reset_state()
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision=run.run_settings.precision,
        dataloader_config=DataLoaderConfiguration(split_batches=True),
        log_with=context.track or None,
        project_dir=context.out / "logs",
    )
    if accelerator.device.type != device.type:
        raise ValueError(
            f"device must be {accelerator.device}, which Accelerate uses here, got {context.device}"
        )
    if context.track:
        project = file_name(run.run_settings.task)
        accelerator.init_trackers(
            # TensorBoard has no projects: there it is a directory for each run.
            run.label if context.track == "tensorboard" else project,
            config={"optimizer": run.recipe.name, "seed": run.seed, **run.settings},
            init_kwargs={"mlflow": {"run_name": run.label}, "wandb": {"name": run.label}},
        )
    return accelerator


def logged_numbers(epoch: Epoch) -> dict[str, float]:
    """Return an epoch as trackers log it: the numbers that were measured, each with a name."""
    numbers = asdict(epoch)
    tasks = numbers.pop("tasks")
    known = {name: number for name, number in numbers.items() if not math.isnan(number)}
    return known | {f"validation_score_of_task_{k}": score for k, score in enumerate(tasks, 1)}


def end_tracking(accelerator: "Accelerator", final: FinalScores, epochs: int) -> None:
    """Log how a run ended, and close its trackers."""
    # Not the test results: nobody is to see them before the study is complete.
    shown = {n: x for n, x in asdict(final).items() if x == x and not n.startswith("test")}
    # Without a step MLflow would take these for those of the first epoch.
    accelerator.log(shown, step=epochs)
    # Not end_training(): it would part the processes, which have other runs to train.
    for tracker in accelerator.trackers:
        tracker.finish()
