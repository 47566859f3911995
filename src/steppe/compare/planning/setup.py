"""What all runs of a study share: settled from the user's options, the preset, and the task."""

import math
from contextlib import nullcontext
from typing import Any

from torch import nn

from steppe.compare.data.datasets import parts_of, size_of
from steppe.compare.planning.options import StudyOptions
from steppe.compare.planning.presets import Preset
from steppe.compare.planning.rehearsal import new_model, rehearse
from steppe.compare.planning.second_task import plan_second_task
from steppe.compare.records.choices import AnySchedule
from steppe.compare.records.task_modifiers import MODIFIERS
from steppe.compare.tasks.source import TaskSource
from steppe.compare.tasks.task import LoadedTask, Task
from steppe.compare.tasks.trace import explained
from steppe.compare.training.run import RunContext, RunSettings


def plan_setup(
    source: TaskSource, options: StudyOptions, preset: Preset, place: RunContext
) -> tuple[LoadedTask, RunSettings, dict[str, Any], str]:
    """Load the task, and settle what all runs share: the user's options, the preset's, the task's.

    A user's own task is rehearsed. With both come the numbers of samples and parameters, for the
    reader, and where the file of a second task is.

    Raises
    ------
    ValueError
        Options contradict each other, or the task.
    """
    precision = options.precision or preset.precision_on(place.device)
    if precision == "fp16" and place.device == "cpu":
        raise ValueError("precision fp16 needs an accelerator: use bf16 or no on a CPU")
    asked = _asked(source.name, options, preset)
    task = source.task({**asked, "data": place.data})
    _refuse_set_twice(task, options)
    epochs, batch_size = _length_and_batch(task, options, preset)
    # Of steppe's own tasks only files can be missing, which their errors say.
    with explained(f"the data of {task.name} cannot be read") if source.source else nullcontext():
        loaded = task.load()
    model = new_model(task)
    parts = parts_of(loaded.data.train)
    if epochs % len(parts):
        raise ValueError(
            f"epochs must be a multiple of the {len(parts)} tasks of {task.name}, got {epochs}"
        )
    steps = tuple(math.ceil(size_of(part) / batch_size) for part in parts)
    if options.early_stopping and loaded.data.is_stream:
        raise ValueError(f"early-stopping is not for {task.name}, whose tasks come one by one")
    if task.schedule is not None and options.schedule is not None:
        raise ValueError(f"{task.name} has a schedule of its own: leave --schedule out")
    then, then_location = plan_second_task(options, asked, loaded, place)
    setup = RunSettings(
        task=task.name,
        model=task.model_name or type(model).__name__,
        samples=task.options.get("samples"),
        fingerprint=loaded.data.fingerprint,
        epochs=epochs,
        steps_per_epoch=max(steps),
        batch_size=batch_size,
        accumulate=options.grad_accumulation,
        precision=precision,
        clip=options.max_grad_norm or task.max_grad_norm,
        schedule=_schedule(loaded, options, preset),
        warmup=options.warmup,
        length=task.options.get("length"),
        stream=steps if loaded.data.is_stream else (),
        options=asked,
        source=source.identity(task, model) if source.source else "",
        early_stopping=options.early_stopping,
        robustness=options.robustness,
        then=then,
    )
    if source.source:
        rehearse(loaded, model, setup, place)
    return loaded, setup, _facts(loaded, model, place), then_location


def _refuse_set_twice(task: Task, options: StudyOptions) -> None:
    for modifier in task.modifiers:
        option = MODIFIERS[modifier.kind].option
        if option and (value := getattr(options, option)) is not None:
            raise ValueError(
                f"--{option.replace('_', '-')} {value} and +{modifier} of {task.name} set the "
                "same: leave one of them out"
            )


def _length_and_batch(task: Task, options: StudyOptions, preset: Preset) -> tuple[int, int]:
    """Return epochs and batch size: the user's, else the preset's, else the task's."""
    modified = {each.kind: int(each.amount) for each in task.modifiers}
    # What is published is of full size; the user's modifiers change that, too.
    epochs, batch_size = preset.training_at(options.scale)
    if epochs is not None:
        epochs *= modified.get("long", 1)
    batch_size = modified.get("batch", batch_size)
    batch_size = options.batch_size or batch_size or task.batch_size
    return options.epochs or epochs or task.epochs, batch_size


def _facts(loaded: LoadedTask, model: nn.Module, place: RunContext) -> dict[str, Any]:
    task, data = loaded
    parameters = list(model.parameters())
    return {
        "train_samples": size_of(data.train),
        "validation_samples": size_of(data.validation),
        "test_samples": size_of(data.test),
        "parameters": sum(p.numel() for p in parameters),
        "trained_parameters": sum(p.numel() for p in parameters if p.requires_grad),
        "domain_incremental": task.domain_incremental,
        "device": place.device,
        "threads": place.threads,
    }


def _asked(task: str, options: StudyOptions, preset: Preset) -> dict[str, Any]:
    """Return what the function that makes the task is to be called with."""
    asked = {
        "scale": options.scale,
        "model": options.model or preset.model_for(task, options.scale),
        "samples": options.samples,
        "length": options.seq_length,
    }
    return {name: value for name, value in asked.items() if value is not None}


def _schedule(loaded: LoadedTask, options: StudyOptions, preset: Preset) -> AnySchedule:
    if loaded.task.schedule is not None:
        return "own"
    # Over a stream the last tasks would be trained with hardly any lr.
    usual = "constant" if loaded.data.is_stream else preset.schedule
    return options.schedule or usual
