"""Rehearse the evaluation of a user's task: batches, metrics and losses of all parts.

What has no value shows before any trial is taken, and not as a result.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.data import Dataset, Subset

from steppe.compare.data.datasets import parts_of, size_of
from steppe.compare.data.sample_hash import sample_hash
from steppe.compare.metrics.scores import each_loss
from steppe.compare.tasks.task import LoadedTask, Task
from steppe.compare.tasks.trace import TaskError, explained
from steppe.compare.training.evaluation import (
    Evaluation,
    batches_for,
    evaluate,
    evaluated_at_once,
    outputs_without_graph,
)
from steppe.compare.training.reproducibility import seed_everything
from steppe.compare.training.robustness import robustness_of
from steppe.compare.training.run import RunContext

if TYPE_CHECKING:
    from accelerate import Accelerator

# Samples that are evaluated first, so that most mistakes show at once.
_FEW = 64
# Of these each perturbation is measured.
_FEW_PERTURBED = 8
# Of each part so many are evaluated then, for one may have no value.
_MANY = 10_000
# Samples that are named.
_MOST_NAMED = 3


def rehearse_evaluation(
    loaded: LoadedTask, model: nn.Module, batch_size: int, context: RunContext
) -> None:
    """Evaluate the model on a few samples of validation and test, then on up to 10 000 of all.

    Raises
    ------
    TaskError
        With what is wrong, and the lines of the user's code that led to it.
    """
    from accelerate import Accelerator

    task, data = loaded
    accelerator = Accelerator(cpu=torch.device(context.device).type == "cpu")
    for name, samples in (("validation", data.validation), ("test", data.test)):
        few = _drawn(parts_of(samples)[0], _FEW)
        at_once = min(_FEW, evaluated_at_once(few, batch_size))
        one_batch = _drawn(parts_of(samples)[0], at_once)
        with explained(f"{name} cannot be evaluated"):
            _check_collates_alike(task, model, one_batch, name)
            found = _evaluated(model, task, few, accelerator, batch_size)
        for metric, value in chain([(task.score.name, found.score)], found.others.items()):
            if not (math.isfinite(value) or (math.isnan(value) and _may_be_nan(task, metric))):
                raise TaskError(f"metric {metric!r} of {name} is {value}, expected a finite number")
    _refuse_sum(task, model, one_batch, accelerator.device)
    evaluated = {"validation": data.validation, "test": data.test, "train": data.unaugmented}
    for name, samples in evaluated.items():
        for part in parts_of(samples):
            many = _drawn(part, _MANY)
            with explained(f"{name} cannot be evaluated"):
                found = _evaluated(model, task, many, accelerator, batch_size)
            _refuse_nan(task, name, found, many)


def rehearse_robustness(
    loaded: LoadedTask, model: nn.Module, batch_size: int, context: RunContext
) -> None:
    """Measure the model with changed weights and inputs on a few samples, and by own measures.

    Raises
    ------
    TaskError
        With what is wrong, and the lines of the user's code that led to it.
    """
    from accelerate import Accelerator

    task, data = loaded
    device = torch.device(context.device)
    few = replace(task, robustness=replace(task.robustness, samples=_FEW_PERTURBED))
    evaluated = partial(
        evaluate,
        model,
        task,
        accelerator=Accelerator(cpu=device.type == "cpu"),
        batch_size=batch_size,
        sample_length=1,
    )
    with explained("robustness cannot be measured"):
        robustness_of(model, LoadedTask(few, data), device, evaluated, _FEW_PERTURBED)


def _drawn(samples: "Dataset[Any]", count: int) -> "Subset[Any]":
    """Return so many at random, as the first ones may be of one class; all if there are fewer."""
    order = torch.randperm(size_of(samples), generator=torch.Generator().manual_seed(0))
    return Subset(samples, order[:count].sort().values.tolist())


def _evaluated(
    model: nn.Module, task: Task, samples: Any, accelerator: "Accelerator", batch_size: int
) -> Evaluation:
    return evaluate(
        model, task, samples, accelerator, batch_size=batch_size, sample_length=1, by_sample=True
    )


def _check_collates_alike(task: Task, model: nn.Module, few: Any, name: str) -> None:
    """Refuse a function that makes other batches of the same samples, as MixUp does."""
    if task.collate_evaluated is None:
        return

    def made(seed: int) -> list[bytes]:
        seed_everything(seed)
        parts = next(iter(batches_for(model, few, size_of(few), collate=task.collate_evaluated)))
        return [sample_hash(part.batch, name) for part in parts]

    try:
        is_same = made(0) == made(1)
    except TypeError:  # a batch of the user's own class, which cannot be hashed
        return
    if not is_same:
        called = "evaluation_collate_fn" if task.evaluation_collate_fn else "collate_fn"
        raise TaskError(
            f"{called} makes another batch of the same samples of {name} each time, as MixUp does: "
            "models must be evaluated on the samples as they are; give the task "
            "evaluation_collate_fn=, which changes nothing at random"
        )


def _refuse_nan(task: Task, name: str, found: Evaluation, samples: "Subset[Any]") -> None:
    """Refuse samples without a loss or a score: a mean over all would have no value either."""
    score = task.score.name
    if math.isnan(found.loss):
        where = _places(found.losses, samples, name)
        raise TaskError(
            f"the loss of {name} is nan before any step{where}: a sample or its target holds NaN, "
            "or the loss divides by 0"
        )
    if name != "train" and math.isnan(found.score) and not _may_be_nan(task, score):
        where = _places(found.scores, samples, name)
        raise TaskError(
            f"metric {score!r} of {name} is nan{where}: let it return a number for every sample, "
            "such as 0 or 1 where it would divide by 0"
        )


def _places(values: Sequence[float], samples: "Subset[Any]", name: str) -> str:
    """Name the samples that have no value, as far as samples have values of their own."""
    rows = [row for row, value in zip(samples.indices, values, strict=False) if math.isnan(value)]
    if not rows:
        return ""
    named = ", ".join(f"{name}[{row}]" for row in rows[:_MOST_NAMED])
    more = len(rows) - _MOST_NAMED
    return f", of {named}" + (f" and {more} more" if more > 0 else "")


def _may_be_nan(task: Task, name: str) -> bool:
    """Whether a few samples may have no value: no weight, or too few of a class."""
    metric = task.metrics.get(name)
    return task.weight is not None if metric is None else metric.is_updated


def _refuse_sum(task: Task, model: nn.Module, few: Any, device: torch.device) -> None:
    """Refuse a loss that adds the samples' losses up: evaluation would count them by batch."""
    from accelerate.utils import send_to_device

    if task.loss is None:
        return
    loader = batches_for(model, few, size_of(few), collate=task.collate_evaluated)
    (part,) = next(iter(loader))
    model.eval()
    with torch.no_grad():
        batch = send_to_device(part.batch, device)
        loss, outputs, targets = outputs_without_graph(task, model, batch)
        whole = float(loss)
        try:
            of_each = each_loss(task.loss, outputs, targets, part.size)
        except Exception:  # a loss may refuse what was cut in any way, and then says nothing
            return
    model.train()
    total, mean = float(of_each.sum()), float(of_each.mean())
    if math.isclose(whole, total, rel_tol=1e-3) and not math.isclose(total, mean, rel_tol=0.5):
        raise TaskError(
            f"loss is the sum over a batch ({whole:.4g} for {part.size} samples), not the mean: "
            "its size would depend on the batch's; divide by the number of samples"
        )
