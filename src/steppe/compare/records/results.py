"""Records of a study: its description, its contenders, and every trial with its outcome.

Training makes them, the storage and JSON files keep them, reports and figures read them.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from steppe._shared.files import write_text
from steppe._shared.hyperparameters import Settings
from steppe.compare.choices import Primary
from steppe.compare.records.json_format import from_json, read_json, register_format, to_json
from steppe.compare.records.phases import DEFAULT as DEFAULT
from steppe.compare.records.phases import PHASES as PHASES
from steppe.compare.records.phases import POOL as POOL
from steppe.compare.records.phases import RECOMMENDED as RECOMMENDED
from steppe.compare.records.validation import check_results

_VERDICTS = "verdicts"


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
    """Losses and scores of a trained model: means in ``eval()`` mode, without augmentation."""

    train_loss: float = math.nan
    train_score: float = math.nan
    validation_loss: float = math.nan
    validation_score: float = math.nan
    test_loss: float = math.nan
    test_score: float = math.nan


@dataclass(frozen=True)
class SampleResults:
    """Results of a trained model sample by sample, as :mod:`.packed_numbers` packs them.

    Attributes
    ----------
    validation_scores, test_scores : str
        Whether each sample was predicted right; empty where the score is no share of samples.
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
    """A run's results; one whose loss stopped being finite ended there, as diverged."""

    curve: tuple[Epoch, ...]
    diverged: bool
    final: FinalScores
    curvature: Curvature
    costs: RunCosts
    samples: SampleResults = field(default_factory=SampleResults)


def trial_label(optimizer: str, phase: str, number: int) -> str:
    """Return a trial's name for the reader.

    Examples
    --------
    >>> trial_label("adamw", POOL, 3), trial_label("adamw", DEFAULT, 0)
    ('adamw, trial 3', 'adamw, default settings, run 0')
    """
    if phase == POOL:
        return f"{optimizer}, trial {number}"
    return f"{optimizer}, {phase} settings, run {number}"


@dataclass(frozen=True)
class Trial:
    """One training run of a study.

    Attributes
    ----------
    optimizer : str
        The contender's name.
    phase : str
        "pool", "default" or "recommended", see :mod:`.phases`.
    number : int
        From 0. Trials of equal phase and number have the same seed, whatever the contender, and
        in the pool the same point of the unit cube.
    seed : int
        Seed of weights and data order.
    settings : mapping
        The hyperparameters it ran with.
    outcome : Outcome or None
        None if it failed.
    error : str
        Why it failed; empty if it did not.
    where : str
        Device, threads and host.
    """

    optimizer: str
    phase: str
    number: int
    seed: int
    settings: Settings
    outcome: Outcome | None
    error: str = ""
    where: str = ""

    @property
    def finite_outcome(self) -> Outcome | None:
        """The outcome, if the trial ended with a finite loss: it neither failed nor diverged."""
        outcome = self.outcome
        if outcome is None or outcome.diverged or not math.isfinite(outcome.final.validation_loss):
            return None
        return outcome


@dataclass(frozen=True)
class Contender:
    """An optimizer of a study.

    Attributes
    ----------
    name : str
        Such as "dualadam" or "adamw+sam".
    title : str
        The class and what is fixed, for the reader.
    space : mapping
        Name of a hyperparameter to what was searched: ``{"low": …, "high": …, "log": bool}`` or
        ``{"choices": […]}``. Empty if nothing was searched: its trials then differ by their seeds.
    defaults : mapping
        Values of the runs with default settings, and in the pool of all that is not searched.
    control_for : tuple of str
        The contenders that this one is a control for.
    epochs : int, default 1
        Its runs have so many times the study's epochs.
    """

    name: str
    title: str = ""
    space: Mapping[str, Any] = field(default_factory=dict)
    defaults: Settings = field(default_factory=dict)
    control_for: tuple[str, ...] = ()
    epochs: int = 1


@dataclass(frozen=True)
class Metric:
    """The score of a task, shown as ``factor · score`` in ``unit``.

    Examples
    --------
    >>> Metric().factor * 0.975
    97.5
    """

    name: str = "accuracy"
    unit: str = "%"
    factor: float = 100.0
    higher_is_better: bool = True


@dataclass(frozen=True)
class Plan:
    """What a study is to find out, declared before anything runs.

    Attributes
    ----------
    budget : int
        k: an optimizer's result is that of the best of k trials.
    trials : int
        N, the trials of each contender that estimate it, at least 3k.
    primary : "score" or "loss", default "score"
        What verdicts are given on: the task's score or the loss, on the test set.
    study_seed : int, default 0
        Seed of all settings, weights and data orders.
    family : tuple of str, default empty
        The contenders that get verdicts: those that the user has named, without the baseline. A
        control that the study has added by itself is to be read beside others.
    repeats : int, default 3
        Runs of each contender at its default and at its recommended settings.

    Examples
    --------
    >>> Plan(budget=4, trials=24).planned(Contender("adamw", space={}), POOL)
    24
    """

    budget: int
    trials: int
    primary: Primary = "score"
    study_seed: int = 0
    family: tuple[str, ...] = ()
    repeats: int = 3

    def planned(self, contender: Contender, phase: str) -> int:
        """Count a contender's trials in a phase: where nothing is searched, the pool is all."""
        if phase == POOL:
            return self.trials
        return self.repeats if contender.space else 0


@dataclass(frozen=True)
class StudyResults:
    """The results of a study, finished or not.

    Attributes
    ----------
    name : str
        Unique in its storage, such as "fashion-mnist-3fa91c02".
    task : str
        What was trained on.
    setup : mapping
        What all runs share, as JSON: model, epochs, batch size, precision, schedule, numbers of
        samples, parameters …
    plan : Plan
        What was to be found out.
    metric : Metric
        Name and unit of validation and test scores.
    versions : mapping
        Of Python, torch, steppe and its source.
    command : str
        The command that reproduces the study.
    contenders : tuple of Contender
        The first is the baseline.
    trials : tuple of Trial
        Those that have ended.
    earlier_plans : tuple of Plan, default empty
        Plans that this one has replaced after their results could be seen.
    created : str, default ""
        When it was planned, as YYYY-MM-DD.
    author, note : str, default ""
        What the user says of the study.
    """

    name: str
    task: str
    setup: Mapping[str, Any]
    plan: Plan
    metric: Metric
    versions: Mapping[str, str]
    command: str
    contenders: tuple[Contender, ...]
    trials: tuple[Trial, ...]
    earlier_plans: tuple[Plan, ...] = ()
    created: str = ""
    author: str = ""
    note: str = ""

    @property
    def complete(self) -> bool:
        """Whether every trial has ended."""
        planned = (self.plan.planned(each, phase) for each in self.contenders for phase in PHASES)
        return len(self.trials) >= sum(planned)

    @property
    def baseline(self) -> str:
        """The contender that verdicts compare with."""
        return self.contenders[0].name

    def trials_of(self, optimizer: str, phase: str) -> tuple[Trial, ...]:
        """Return a contender's trials in one phase, by number."""
        found = (t for t in self.trials if (t.optimizer, t.phase) == (optimizer, phase))
        return tuple(sorted(found, key=lambda trial: trial.number))

    def to_dict(self) -> dict[str, Any]:
        """Give everything as plain values for JSON: null for what is not finite."""
        content: dict[str, Any] = to_json(self)
        return content

    def save(self, path: Path) -> None:
        """Write a JSON file, curves to six digits, whole or not at all; :func:`load` reads it.

        It has the verdicts too, for other programs: see
        :class:`~steppe.compare.records.readings.Verdict`.

        Raises
        ------
        OSError
            It cannot be written.
        """
        # Imported here because readings are taken from these records.
        from steppe.compare.records.readings import verdicts

        content = {**self.to_dict(), _VERDICTS: to_json(verdicts(self))}
        for trial in content["trials"]:
            if trial["outcome"]:
                # Of all else every digit is kept: equal differences must stay equal.
                trial["outcome"]["curve"] = _short(trial["outcome"]["curve"])
        # A line for each trial: readable enough, and a change shows where it is.
        trials = ",\n".join(_compact(trial) for trial in content.pop("trials"))
        text = f'{_compact(content)[:-1]},"trials":[\n{trials}\n]}}\n'
        write_text(path, text)


def load(path: Path) -> StudyResults:
    """Read what :meth:`StudyResults.save` has written.

    Raises
    ------
    ValueError
        The file is something else, or damaged; the message names the field.
    OSError
        It cannot be read.
    """
    try:
        content = read_json(path)
        if isinstance(content, dict):
            # Anybody may have edited them: they are computed from the trials whenever they show.
            content.pop(_VERDICTS, None)
        found = from_json(StudyResults, content)
        check_results(found)
    except ValueError as error:
        raise ValueError(f"{path} is no study saved by steppe report --json: {error}") from error
    return found


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


register_format(tuple[Epoch, ...], _columns, _epochs)


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _short(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _short(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_short(each) for each in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
