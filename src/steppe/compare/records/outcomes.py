"""Records of one training run: its curve, what it ended with, its curvature and its costs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from steppe.compare.records.json_format import (
    from_json,
    leave_out_defaults,
    register_format,
    to_json,
)


@dataclass(frozen=True)
class Epoch:
    """A run's losses and score after an epoch.

    Attributes
    ----------
    train_loss : float
        Mean over the epoch's samples as they were trained on, each before its step.
    validation_loss, validation_score : float
        Over the validation samples in ``eval()`` mode; the score is the task's metric.
    lr : float
        Of the epoch's last step.
    seconds : float
        Training time so far, evaluation left out.
    tasks : tuple of float, default empty
        Of a stream, the validation score of each task so far; the others above are of those tasks.
    probe_loss, sharpness, largest : float, default NaN
        Train loss, sharpness and largest eigenvalue after the epoch, over the samples that
        :class:`Curvature` is measured on. Only of some epochs of runs at the recommended settings.
    """

    train_loss: float
    validation_loss: float
    validation_score: float
    lr: float
    seconds: float
    tasks: tuple[float, ...] = ()
    probe_loss: float = math.nan
    sharpness: float = math.nan
    largest: float = math.nan


@dataclass(frozen=True)
class FinalScores:
    """Losses and scores of a trained model: means in ``eval()`` mode, without augmentation.

    ``test_others`` are the scores of further metrics on the test set, by their names.
    """

    train_loss: float = math.nan
    train_score: float = math.nan
    validation_loss: float = math.nan
    validation_score: float = math.nan
    test_loss: float = math.nan
    test_score: float = math.nan
    test_others: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class SampleResults:
    """Results of a trained model sample by sample, as :mod:`.packed_numbers` packs them.

    Attributes
    ----------
    validation_scores, test_scores : str
        What each sample adds to the score, such as whether it was predicted right; empty where
        the metric is no mean over samples.
    validation_losses, test_losses : str
        The loss of each sample, or of up to 500 equal stretches of samples.
    """

    validation_scores: str = ""
    validation_losses: str = ""
    test_scores: str = ""
    test_losses: str = ""


@dataclass(frozen=True)
class Curvature:
    """Curvature of the training loss at a run's end; NaN where it could not be measured.

    Attributes
    ----------
    sharpness : float
        SAM's sharpness: how much the loss rises in a step of length 0.05 along the gradient.
    largest : float
        The Hessian's eigenvalue of largest magnitude, to 1 %; NaN if it did not converge.
    trace : float
        The Hessian's trace.
    preconditioned : float
        The largest eigenvalue of the Hessian after the optimizer's preconditioner, to 1 %.
    threshold : float
        The preconditioned eigenvalue above which steps are unstable, at the run's first lr.
    density : tuple of (eigenvalue, density)
        The spectral density of the Hessian, an estimate smoothed for drawing.
    """

    sharpness: float = math.nan
    largest: float = math.nan
    trace: float = math.nan
    preconditioned: float = math.nan
    threshold: float = math.nan
    density: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class PerturbedScores:
    """A trained model's results once its weights or inputs have been changed.

    Attributes
    ----------
    validation_score, test_score : float
        The task's metric; of a measure of another kind, as the kurtosis of weights, its value.
    validation_loss, test_loss : float
        Mean losses.
    validation_samples, test_samples : str
        What samples add to the score, as means over up to 10 equal stretches of them, packed by
        :mod:`.packed_numbers`; empty where the metric is no mean over samples.
    """

    validation_score: float = math.nan
    test_score: float = math.nan
    validation_loss: float = math.nan
    test_loss: float = math.nan
    validation_samples: str = ""
    test_samples: str = ""


@dataclass(frozen=True)
class FineTuningCurve:
    """A trained model while it is fine-tuned on a second task: what it forgets, and what it learns.

    Every field but ``lr`` has an entry for each point that was measured; entries after the loss has
    stopped being finite are NaN.

    Attributes
    ----------
    lr : float
        The learning rate of fine-tuning.
    steps : tuple of int
        Steps so far, from 0, which is the trained model itself.
    validation_loss, validation_score, test_loss, test_score : tuple of float
        Of the task that the model was trained on, over up to 1 000 samples of each part.
    second_validation_loss, second_validation_score, second_test_loss, second_test_score : tuple of
    float
        The same of the second task.
    """

    lr: float
    steps: tuple[int, ...]
    validation_loss: tuple[float, ...]
    validation_score: tuple[float, ...]
    test_loss: tuple[float, ...]
    test_score: tuple[float, ...]
    second_validation_loss: tuple[float, ...]
    second_validation_score: tuple[float, ...]
    second_test_loss: tuple[float, ...]
    second_test_score: tuple[float, ...]


@dataclass(frozen=True)
class RunCosts:
    """Time, gradients and memory of a run.

    Attributes
    ----------
    step_ms : float
        Median step (forward, backward, update) in milliseconds.
    seconds : float
        Training time, evaluation left out.
    state_bytes : float
        Optimizer state and averaged weights, in bytes per trainable parameter.
    peak_bytes : float
        Peak memory of tensors on the accelerator, in bytes; NaN on CPUs.
    gradients : float, default NaN
        Gradient evaluations of the run: forward and backward of a batch is one, SAM's step two.
    """

    step_ms: float
    seconds: float
    state_bytes: float
    peak_bytes: float = math.nan
    gradients: float = math.nan


@dataclass(frozen=True)
class Outcome:
    """A run's results; one whose loss stopped being finite ended there, as diverged.

    ``robustness`` has its results after perturbations, by their names, and unperturbed on the same
    samples, as "clean"; empty where they were not measured. ``fine_tuning`` has a curve for each
    learning rate that it was fine-tuned with on a second task, if the study has one.
    """

    curve: tuple[Epoch, ...]
    diverged: bool
    final: FinalScores
    curvature: Curvature
    costs: RunCosts
    samples: SampleResults = field(default_factory=SampleResults)
    robustness: Mapping[str, PerturbedScores] = field(default_factory=dict)
    fine_tuning: tuple[FineTuningCurve, ...] = ()


def _columns(curve: Sequence[Epoch]) -> dict[str, list[Any]]:
    """Return a curve as a list for each field of its epochs, which takes half the room."""
    plain = [to_json(epoch) for epoch in curve]
    columns = {each.name: [epoch[each.name] for epoch in plain] for each in fields(Epoch)}
    # Only streams have tasks, and few runs have curvature along the way.
    optional = {each.name for each in fields(Epoch) if each.default is not MISSING}
    return {
        name: column
        for name, column in columns.items()
        if name not in optional or any(value not in ([], None) for value in column)
    }


def _epochs(columns: Any) -> tuple[Epoch, ...]:
    lists = isinstance(columns, Mapping) and all(isinstance(x, list) for x in columns.values())
    if not lists:
        raise TypeError(f"must be a list for each field of an epoch, got {str(columns)[:80]}")
    if len({len(column) for column in columns.values()}) > 1:
        raise ValueError("must be lists of equal length")
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return tuple(from_json(list[Epoch], rows))


def _as_list(scores: PerturbedScores) -> list[Any]:
    """Return the fields in their order, which takes a third of the room; what is not known as null.

    A run has thirty of them.
    """
    values = [getattr(scores, each.name) for each in fields(PerturbedScores)]
    return [value if isinstance(value, str) or math.isfinite(value) else None for value in values]


def _from_list(content: Any) -> PerturbedScores:
    names = [each.name for each in fields(PerturbedScores)]
    if not isinstance(content, list) or len(content) != len(names):
        raise TypeError(f"must be a list of {len(names)} fields, got {str(content)[:80]}")
    numbers = [math.nan if value is None else value for value in content[:4]]
    are_numbers = all(type(x) in (int, float) and not math.isinf(x) for x in numbers)
    if not are_numbers or not all(isinstance(value, str) for value in content[4:]):
        raise TypeError(f"must be four numbers and two strings, got {str(content)[:80]}")
    validation, test, validation_loss, test_loss = map(float, numbers)
    return PerturbedScores(validation, test, validation_loss, test_loss, content[4], content[5])


register_format(tuple[Epoch, ...], _columns, _epochs)
leave_out_defaults(FinalScores, "test_others")
register_format(PerturbedScores, _as_list, _from_list)
# After the formats of what it holds.
leave_out_defaults(Outcome, "robustness", "fine_tuning")
