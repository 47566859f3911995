"""What a study holds: its description, its contenders, and every trial with what came of it."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from steppe._shared.files import write_text
from steppe._shared.hyperparameters import Settings

TUNE, TEST = "tune", "test"


@dataclass(frozen=True)
class Epoch:
    """Where a run stood after an epoch.

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
    """

    train_loss: float
    validation_loss: float
    validation_score: float
    lr: float
    seconds: float
    tasks: tuple[float, ...] = ()


@dataclass(frozen=True)
class Final:
    """Where a run ended: means over all samples in ``eval()`` mode, without augmentation.

    The test set's stay NaN in tuning, which never looks at it.
    """

    train_loss: float = math.nan
    train_score: float = math.nan
    validation_loss: float = math.nan
    validation_score: float = math.nan
    test_loss: float = math.nan
    test_score: float = math.nan


@dataclass(frozen=True)
class Curvature:
    """What the training loss is like about where a run ended; NaN for what is not there.

    Attributes
    ----------
    sharpness : float
        SAM's: the rise of the loss one step of length 0.05 up the gradient.
    largest : float
        The Hessian's eigenvalue of largest magnitude, to 1 %, NaN if it was not found so exactly;
        likewise the following.
    trace : float
        Its trace.
    preconditioned : float
        The largest eigenvalue after the optimizer's preconditioner.
    threshold : float
        Where that stops being stable, at the learning rate that the run began with.
    density : tuple of (eigenvalue, density)
        The spectral density of the Hessian, an estimate smoothed for drawing; empty in tuning.
    """

    sharpness: float = math.nan
    largest: float = math.nan
    trace: float = math.nan
    preconditioned: float = math.nan
    threshold: float = math.nan
    density: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class RunCosts:
    """What a run took.

    Attributes
    ----------
    step_ms : float
        Median step (forward, backward, update) in milliseconds.
    seconds : float
        Training time, evaluation left out.
    state_bytes : float
        Optimizer state, in bytes per trainable parameter.
    peak_bytes : float
        Most memory that tensors took on the accelerator; NaN on CPUs.
    """

    step_ms: float
    seconds: float
    state_bytes: float
    peak_bytes: float = math.nan


@dataclass(frozen=True)
class Outcome:
    """What came of a run; one whose loss stopped being finite ended there, as diverged."""

    curve: tuple[Epoch, ...]
    diverged: bool
    final: Final
    curvature: Curvature
    costs: RunCosts


def trial_label(optimizer: str, phase: str, number: int) -> str:
    """Name a trial, for the reader.

    Examples
    --------
    >>> trial_label("adamw", TEST, 3)
    'adamw, seed 3'
    """
    return f"{optimizer}, {'tuning trial' if phase == TUNE else 'seed'} {number}"


@dataclass(frozen=True)
class Trial:
    """One training run of a study.

    Attributes
    ----------
    optimizer : str
        The contender's name.
    phase : str
        "tune" or "test".
    number : int
        From 0: in tuning the point of the search space, of which 0 is the default; in testing the
        seed.
    seed : int
        Of weights and order; the same for all tuning trials, and never one of the test's.
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
        ``{"choices": […]}``. Empty if nothing was tuned.
    defaults : mapping
        Values of the first tuning trial, and of everything if nothing was tuned.
    control_for : tuple of str
        The contenders that are to be read beside this one.
    follows : str
        The contender whose best settings this one takes over instead of tuning its own; or "".
    """

    name: str
    title: str = ""
    space: Mapping[str, Any] = field(default_factory=dict)
    defaults: Settings = field(default_factory=dict)
    control_for: tuple[str, ...] = ()
    follows: str = ""

    def tuning_trials(self, budget: int) -> int:
        """Count the tuning trials that it gets; where nothing is searched, one says it all."""
        if self.follows:
            return 0
        return budget if self.space else min(budget, 1)


@dataclass(frozen=True)
class Metric:
    """How a task scores, as a reader wants it: ``factor · score`` in ``unit``.

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
class StudyResults:
    """A study as far as it has got.

    Attributes
    ----------
    name : str
        Unique in its storage, such as "fashion-mnist-3fa91c02".
    task : str
        What was trained on.
    setup : mapping
        All that the runs share, as JSON: model, epochs, batch size, precision, schedule, numbers of
        samples, parameters …
    budget, seeds : int
        Tuning trials and test seeds of each contender.
    metric : Metric
        What validation and test scores are.
    versions : mapping
        Of Python, torch, steppe and its source.
    command : str
        What reproduces the study.
    contenders : tuple of Contender
        The first is the baseline.
    trials : tuple of Trial
        Those that have ended.
    """

    name: str
    task: str
    setup: Mapping[str, Any]
    budget: int
    seeds: int
    metric: Metric
    versions: Mapping[str, str]
    command: str
    contenders: tuple[Contender, ...]
    trials: tuple[Trial, ...]

    @property
    def complete(self) -> bool:
        """Whether every trial has ended."""
        tuning = sum(each.tuning_trials(self.budget) for each in self.contenders)
        return len(self.trials) >= tuning + len(self.contenders) * self.seeds

    def of(self, optimizer: str, phase: str) -> tuple[Trial, ...]:
        """Trials of one contender in one phase, by number."""
        found = (t for t in self.trials if (t.optimizer, t.phase) == (optimizer, phase))
        return tuple(sorted(found, key=lambda trial: trial.number))

    def chosen(self, optimizer: str) -> Settings:
        """Return what the test runs of a contender ran with; empty if none has ended."""
        tests = self.of(optimizer, TEST)
        return tests[0].settings if tests else {}

    def to_dict(self) -> dict[str, Any]:
        """Give everything as plain values for JSON: null for what is not finite."""
        trials = [
            {**vars(each), "outcome": each.outcome and outcome_to_dict(each.outcome)}
            for each in self.trials
        ]
        plain: dict[str, Any] = _plain(asdict(replace(self, trials=())) | {"trials": trials})
        return plain

    def save(self, path: Path) -> None:
        """Write a JSON file, curves to six digits, whole or not at all; :func:`load` reads it.

        Raises
        ------
        OSError
            It cannot be written.
        """
        content = self.to_dict()
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
        The file is something else.
    OSError
        It cannot be read.
    """
    try:
        content = json.loads(path.read_text())
        return study_from_dict(content)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no study saved by steppe report --json") from error


def study_from_dict(content: Mapping[str, Any]) -> StudyResults:
    """Rebuild a study from :meth:`StudyResults.to_dict`."""
    parts = dict(content)
    parts["metric"] = Metric(**parts["metric"])
    parts["contenders"] = tuple(map(contender_from_dict, parts["contenders"]))
    parts["trials"] = tuple(
        Trial(**{**each, "outcome": each["outcome"] and outcome_from_dict(each["outcome"])})
        for each in parts["trials"]
    )
    return StudyResults(**parts)


def contender_from_dict(content: Mapping[str, Any]) -> Contender:
    """Rebuild a contender from its fields, after JSON."""
    return Contender(**{**content, "control_for": tuple(content["control_for"])})


def outcome_to_dict(outcome: Outcome) -> dict[str, Any]:
    """Give an outcome as plain values for JSON, its curve by columns, which takes half the room."""
    names = [each.name for each in fields(Epoch)]
    columns = {name: [getattr(epoch, name) for epoch in outcome.curve] for name in names}
    curve = {name: each for name, each in columns.items() if any(value != () for value in each)}
    plain: dict[str, Any] = _plain({**asdict(outcome), "curve": curve})
    return plain


def outcome_from_dict(content: Mapping[str, Any]) -> Outcome:
    """Rebuild an outcome from :func:`outcome_to_dict`."""
    curvature = dict(content["curvature"])
    density = tuple((float(x), float(y)) for x, y in curvature.pop("density"))
    return Outcome(
        curve=tuple(
            _filled(Epoch, dict(zip(content["curve"], epoch, strict=True)))
            for epoch in zip(*content["curve"].values(), strict=True)
        ),
        diverged=content["diverged"],
        final=_filled(Final, content["final"]),
        curvature=_filled(Curvature, curvature, density=density),
        costs=_filled(RunCosts, content["costs"]),
    )


def _filled(cls: Any, values: Mapping[str, Any], **others: Any) -> Any:
    """Build a record of numbers, NaN where JSON has null."""
    known = {each.name for each in fields(cls)}
    if not values.keys() <= known:
        raise ValueError(f"{cls.__name__} has no {', '.join(sorted(values.keys() - known))}")
    numbers = {name: _number(value) for name, value in values.items()}
    return cls(**numbers, **others)


def _number(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_number, value))
    return math.nan if value is None else value


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _short(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _short(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_short(each) for each in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
