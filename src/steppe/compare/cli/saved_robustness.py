"""What a saved run keeps of its score when its weights or inputs change, as one result."""

import math
from functools import partial

import torch
from torch import nn

from steppe._shared.progress import progress
from steppe._shared.statistics import standard_error
from steppe.compare.data.datasets import size_of
from steppe.compare.records.measure_names import CLEAN, NOT_SCORES
from steppe.compare.records.of_mean import SLOPE
from steppe.compare.records.packed_numbers import unpack
from steppe.compare.records.results import PerturbedScores
from steppe.compare.tasks.task import LoadedTask, Task
from steppe.compare.training.evaluation import evaluate
from steppe.compare.training.robustness import DRAWS_OF_NOISE, robustness_of
from steppe.landscape import PERPLEXITY, Perturbed, Robustness


def saved_robustness(
    loaded: LoadedTask, model: nn.Module, device: torch.device, sample_length: int
) -> Robustness:
    """Measure a model as ``steppe compare --robustness`` measures runs; return its test results.

    Standard errors are over ten stretches of test samples.

    Parameters
    ----------
    loaded : LoadedTask
        The task that it was trained on, with its data.
    model : nn.Module
        The model, on its device.
    device : torch.device
        The device.
    sample_length : int
        Tokens of a sample; 1 where samples are no text.
    """
    from accelerate import Accelerator

    task, data = loaded
    if device.index is not None:
        # Accelerate takes torch's current device.
        torch.accelerator.set_device_index(device.index)
    evaluated = partial(
        evaluate,
        model,
        task,
        accelerator=Accelerator(cpu=device.type == "cpu"),
        sample_length=sample_length,
        batch_size=task.batch_size,
    )
    with progress("Robustness", None):
        found = robustness_of(model, loaded, device, evaluated)
    own = {name: found[name].test_score for name in task.robustness.measures}
    kurtosis, outliers, error, brier = (
        found[name].test_score if name in found else math.nan for name in NOT_SCORES
    )
    scored = [name for name in found if name not in (*NOT_SCORES, *own)]
    return Robustness(
        metric=task.score.name if task.metrics else "",
        samples=min(task.robustness.samples, size_of(data.test)),
        results=tuple(_perturbed(task, name, found[name], found[CLEAN]) for name in scored),
        kurtosis=kurtosis,
        outliers=outliers,
        calibration_error=error,
        calibration_error_stderr=math.nan,
        brier=brier,
        brier_stderr=math.nan,
        own=own,
        complete=True,
    )


def _perturbed(task: Task, name: str, own: PerturbedScores, clean: PerturbedScores) -> Perturbed:
    """Return test results; the change is that of the score, of perplexity that of the loss."""
    of_loss = not task.metrics or task.score.name == PERPLEXITY
    slope = SLOPE[task.score.of_mean]
    after, before = unpack(own.test_samples), unpack(clean.test_samples)
    factor, clean_factor = (
        slope(float(each.mean())) if len(each) else math.nan for each in (after, before)
    )
    changes = after - before if of_loss else factor * after - clean_factor * before
    change = own.test_score - clean.test_score
    if of_loss:
        change = own.test_loss - clean.test_loss
    error = standard_error(after.tolist())
    given = {each.name: each.draws for each in task.robustness.perturbations or ()}
    return Perturbed(
        name=name,
        score=own.test_score if task.metrics else math.nan,
        score_error=factor * error if task.metrics else math.nan,
        loss=own.test_loss,
        loss_error=error if of_loss else math.nan,
        change=change,
        change_error=standard_error(changes.tolist()),
        draws=given.get(name, DRAWS_OF_NOISE if name.startswith("weight noise") else 1),
    )
