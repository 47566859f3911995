"""What a saved run keeps of its score when its weights or inputs change, as one result."""

import math
from collections.abc import Iterable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from steppe._shared.progress import progress
from steppe.compare.data.datasets import size_of
from steppe.compare.records.measure_names import CLEAN, NOT_SCORES
from steppe.compare.records.of_mean import SLOPE
from steppe.compare.records.results import PerturbedScores
from steppe.compare.tasks.task import LoadedTask, Task
from steppe.compare.training.evaluation import Evaluation, evaluate
from steppe.compare.training.robustness import robustness_of
from steppe.landscape import PERPLEXITY, Perturbed, Robustness, error_over_draws


def saved_robustness(
    loaded: LoadedTask, model: nn.Module, device: torch.device, sample_length: int
) -> Robustness:
    """Measure a model as ``steppe compare --robustness`` measures runs; return its test results.

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
    draws: dict[str, Sequence[Evaluation]] = {}
    with progress("Robustness", None):
        found = robustness_of(model, loaded, device, evaluated, on_test=draws.__setitem__)
    own = {name: found[name].test_score for name in task.robustness.measures}
    kurtosis, outliers, error, brier = (
        found[name].test_score if name in found else math.nan for name in NOT_SCORES
    )
    return Robustness(
        metric=task.score.name if task.metrics else "",
        samples=min(task.robustness.samples, size_of(data.test)),
        results=tuple(
            _perturbed(task, name, found[name], found[CLEAN], draws[name], draws[CLEAN][0])
            for name in draws
        ),
        kurtosis=kurtosis,
        outliers=outliers,
        calibration_error=error,
        calibration_error_stderr=math.nan,
        brier=brier,
        brier_stderr=math.nan,
        own=own,
        complete=True,
    )


def _perturbed(
    task: Task,
    name: str,
    own: PerturbedScores,
    clean: PerturbedScores,
    draws: Sequence[Evaluation],
    before: Evaluation,
) -> Perturbed:
    """Return test results; the change is that of the score, of perplexity that of the loss."""
    of_loss = not task.metrics or task.score.name == PERPLEXITY
    scores, losses = _table(each.scores for each in draws), _table(each.losses for each in draws)
    was = torch.tensor(before.scores, dtype=torch.float64)
    slope = SLOPE[task.score.of_mean]
    factor, clean_factor = (
        slope(float(each.mean())) if each.numel() else math.nan for each in (scores, was)
    )
    changes = scores - was if of_loss else factor * scores - clean_factor * was
    change = own.test_score - clean.test_score
    if of_loss:
        change = own.test_loss - clean.test_loss
    return Perturbed(
        name=name,
        score=own.test_score if task.metrics else math.nan,
        score_error=factor * error_over_draws(scores) if task.metrics else math.nan,
        loss=own.test_loss,
        loss_error=error_over_draws(losses),
        change=change,
        change_error=error_over_draws(changes),
        draws=len(draws),
    )


def _table(rows: Iterable[Sequence[float]]) -> Tensor:
    """Return one row a draw; without a number for each sample a table without columns."""
    return torch.tensor([*rows], dtype=torch.float64)
