"""Plan what trained models are fine-tuned on, and see that they can be, before any is trained."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import Dataset, Subset

from steppe.compare.data.datasets import size_of, stored_targets
from steppe.compare.planning.options import StudyOptions
from steppe.compare.planning.rehearsal import new_model
from steppe.compare.planning.rehearsed_evaluation import rehearse_evaluation
from steppe.compare.records.second_task import SecondTask
from steppe.compare.tasks.source import TaskSource, find_task
from steppe.compare.tasks.task import LoadedTask, is_pair
from steppe.compare.tasks.trace import explained
from steppe.compare.training.evaluation import batches_for
from steppe.compare.training.reproducibility import reproducible, seed_everything
from steppe.compare.training.run import RunContext

#: Of fine-tuning; forgetting is read at the one that forgets least.
LRS = (1e-4, 3e-4, 1e-3)
#: Of fine-tuning, with each lr.
STEPS = 200

# Options that a second task is made with, where it takes them: its samples and its directory are
# its own.
_SHARED_OPTIONS = ("scale", "model", "length")


def plan_second_task(
    options: StudyOptions, asked: Mapping[str, Any], loaded: LoadedTask, context: RunContext
) -> tuple[SecondTask | None, str]:
    """Find the task that ``then`` names, and settle how models are fine-tuned on it.

    Parameters
    ----------
    options : StudyOptions
        Name the task, and the loss that forgetting is read at.
    asked : mapping
        What the first task was made with.
    loaded : LoadedTask
        The first task, with its data.
    context : RunContext
        The device.

    Returns
    -------
    tuple of SecondTask or None, and str
        It, if there is to be one, and where the file of a user's own is.

    Raises
    ------
    ValueError
        There is no such task, or the first task's models cannot be trained on it.
    """
    if options.then is None:
        return None, ""
    source = find_task(options.then)
    if long := [each for each in source.modifiers if each.kind == "long"]:
        raise ValueError(
            f"then must be a task without +{long[0]}, got {source.label}: fine-tuning has "
            f"{STEPS} steps, whatever its epochs are"
        )
    taken = inspect.signature(source.make).parameters
    given = {name: asked[name] for name in _SHARED_OPTIONS if name in asked and name in taken}
    second = source.task(given).load()
    _check_fits(loaded, second, source, context)
    found = SecondTask(
        task=source.label,
        fingerprint=second.data.fingerprint,
        batch_size=second.task.batch_size,
        steps=STEPS,
        lrs=LRS,
        loss=options.then_loss,
        options=given,
        source=_identity(source, second, loaded),
    )
    return found, source.location


def load_second_task(
    planned: SecondTask | None, location: str, first: LoadedTask, beside: object = ""
) -> LoadedTask | None:
    """Load the second task that a study was planned with, and its data; None if it has none.

    Parameters
    ----------
    planned : SecondTask or None
        The study's.
    location : str
        Where the file of a user's own task was when the study was planned; "" if it is not known.
    first : LoadedTask
        The study's first task.
    beside : str, default ""
        Where the file of the first task is here: the second one's may be in its directory. Anything
        else than a text says nothing.

    Raises
    ------
    ValueError
        The task is not found, or it or its data is not the same here.
    """
    if planned is None:
        return None
    source = find_task(_place_of(planned, location, beside))
    found = source.task(planned.options).load()
    here = _identity(source, found, first), found.data.fingerprint
    if here != (planned.source, planned.fingerprint):
        raise ValueError(
            f"the second task {planned.task} must be what the study was planned with, "
            f"{planned.fingerprint} {planned.source}, got {' '.join(reversed(here))}"
        )
    return found


def _place_of(planned: SecondTask, location: str, beside: object) -> str:
    """Return a second task's name with its file's directory, if it is in a file.

    It is looked for where it was planned, then beside the first task's file, then here.
    """
    file, _, attribute = planned.task.rpartition(":")
    if not file.endswith(".py"):
        return location or planned.task
    directory = Path(beside.rpartition(":")[0]).parent if isinstance(beside, str) else Path()
    places = [Path(location.rpartition(":")[0])] if location else []
    places += [directory / file, Path(file)]
    for path in places:
        if path.is_file():
            return f"{path}:{attribute}"
    raise ValueError(
        f"{file} must be in {directory.resolve()}, as it has the second task {planned.task}: copy "
        "it there, or run this where it is"
    )


def _identity(source: TaskSource, second: LoadedTask, first: LoadedTask) -> str:
    """Return a hash of a user's second task, which trains the first one's model; "" of steppe's."""
    return source.identity(second.task, new_model(first.task)) if source.source else ""


def _check_fits(
    first: LoadedTask, second: LoadedTask, source: TaskSource, context: RunContext
) -> None:
    """Refuse a task whose samples or targets are none for the first task's model."""
    name = first.task.name
    for each, said in ((first, name), (second, source.label)):
        if each.data.is_stream:
            raise ValueError(
                f"then is for two tasks that are no streams, got the stream {said}: what is "
                "forgotten in a stream is measured without then"
            )
    if _samples_and_labels(first) == _samples_and_labels(second):
        raise ValueError(f"then must be a task of other samples than {name}, got {source.label}")
    ours, theirs = (_shapes(each.data.train) for each in (first, second))
    if ours != theirs:
        raise ValueError(
            f"then must be a task whose inputs have the shape {ours} of {name}, got {theirs} of "
            f"{source.label}"
        )
    with reproducible(context), explained(f"{source.label} does not fit the model of {name}"):
        _take_loss(first, second, context)
        if source.source:
            model = new_model(first.task).to(context.device)
            rehearse_evaluation(second, model, second.task.batch_size, context)


def _samples_and_labels(loaded: LoadedTask) -> tuple[object, ...]:
    """Return what tasks have in common that are trained on the same, or on a part of it."""
    noise = [each for each in loaded.task.modifiers if each.kind == "noise"]
    return loaded.data.fingerprint.partition("+")[0], *noise


def _take_loss(first: LoadedTask, second: LoadedTask, context: RunContext) -> None:
    """Compute the second task's loss and gradient on a batch, with a new model of the first."""
    from accelerate.utils import send_to_device

    seed_everything(0)
    task, samples = second.task, second.data.train
    model = new_model(first.task).to(context.device).train()
    few = Subset(samples, range(min(size_of(samples), task.batch_size)))
    ((part,),) = batches_for(model, few, task.batch_size, collate=task.collate_fn)
    batch = send_to_device(part.batch, torch.device(context.device))
    if task.step is None:
        _check_classes(samples, task.outputs(model, batch)[0])
    torch.autograd.backward(task.batch_loss(model, batch))


def _check_classes(samples: Dataset[Any], outputs: Any) -> None:
    targets = stored_targets(samples)
    if targets is None or targets.is_floating_point() or not isinstance(outputs, Tensor):
        return
    # Of a text each word has a row of outputs.
    count = outputs.shape[1 if targets.ndim == 1 else -1]
    if (largest := int(targets.max())) >= count:
        raise ValueError(f"its classes must be below the {count} outputs, got {largest}")


def _shapes(samples: Dataset[Any]) -> str:
    """Return the shapes of a sample's inputs; texts of any length are alike."""
    first = samples[0]
    inputs = first[0] if is_pair(first) else first
    return ", ".join(
        "of a text" if each.ndim == 1 and "int" in str(each.dtype) else str(tuple(each.shape))
        for each in tree_leaves(inputs)
        if hasattr(each, "shape")
    )
