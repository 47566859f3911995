"""Records of a study: its description, its contenders, and every trial with its outcome.

Training makes them, the storage and JSON files keep them, reports and figures read them.
"""

import gzip
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import IO, Any

from steppe._shared.files import write_whole
from steppe._shared.hyperparameters import Settings
from steppe.compare.records.choices import OfMean, Primary
from steppe.compare.records.json_format import (
    from_json,
    leave_out_defaults,
    read_json,
    to_json,
)
from steppe.compare.records.outcomes import Curvature as Curvature
from steppe.compare.records.outcomes import Epoch as Epoch
from steppe.compare.records.outcomes import FinalScores as FinalScores
from steppe.compare.records.outcomes import FineTuningCurve as FineTuningCurve
from steppe.compare.records.outcomes import Outcome as Outcome
from steppe.compare.records.outcomes import PerturbedScores as PerturbedScores
from steppe.compare.records.outcomes import RunCosts as RunCosts
from steppe.compare.records.outcomes import SampleResults as SampleResults
from steppe.compare.records.phases import DEFAULT as DEFAULT
from steppe.compare.records.phases import PHASES as PHASES
from steppe.compare.records.phases import POOL as POOL
from steppe.compare.records.phases import RECOMMENDED as RECOMMENDED
from steppe.compare.records.validation import check_results

_VERDICTS = "verdicts"


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
class ContenderRecord:
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
    source : str
        Hash of the class's source, if it is neither torch's nor steppe's, whose versions the study
        has.
    """

    name: str
    title: str = ""
    space: Mapping[str, Any] = field(default_factory=dict)
    defaults: Settings = field(default_factory=dict)
    control_for: tuple[str, ...] = ()
    epochs: int = 1
    source: str = ""


@dataclass(frozen=True)
class MetricDescription:
    """The score of a task, shown as ``factor · score`` in ``unit``.

    Attributes
    ----------
    name, unit : str
        Such as "accuracy" and "%".
    factor : float
        From the score to the unit.
    higher_is_better : bool
        Whether more is better.
    of_mean : "itself", "exp" or "root", default "itself"
        The score as a function of the mean over samples: perplexity is exp of the mean loss, the
        root mean square error the root of the mean square.

    Examples
    --------
    >>> MetricDescription().factor * 0.975
    97.5
    """

    name: str = "accuracy"
    unit: str = "%"
    factor: float = 100.0
    higher_is_better: bool = True
    of_mean: OfMean = "itself"


#: The score of a task that has no metric.
MEAN_LOSS = MetricDescription("mean loss", "", 1.0, higher_is_better=False)


@dataclass(frozen=True)
class StudyPlan:
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
        The contenders that get verdicts, by their names: those that the user has named, without the
        baseline. A control that the study has added by itself is to be read beside others.
    repeats : int, default 3
        Runs of each contender at its default and at its recommended settings.
    searched : str, default ""
        Hash of what the baseline and the family are, and of what is searched for them: who changes
        that after the results could be seen has changed the plan.

    Examples
    --------
    >>> StudyPlan(budget=4, trials=24).planned(ContenderRecord("adamw", space={}), POOL)
    24
    """

    budget: int
    trials: int
    primary: Primary = "score"
    study_seed: int = 0
    family: tuple[str, ...] = ()
    repeats: int = 3
    searched: str = ""

    def planned(self, contender: ContenderRecord, phase: str) -> int:
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
    plan : StudyPlan
        What was to be found out.
    metric : MetricDescription
        Name and unit of validation and test scores.
    versions : mapping
        Of Python, torch, steppe and its source.
    command : str
        The command that reproduces the study.
    contenders : tuple of ContenderRecord
        The first is the baseline.
    trials : tuple of Trial
        Those that have ended.
    earlier_plans : tuple of StudyPlan, default empty
        Plans that this one has replaced after their results could be seen.
    created : str, default ""
        When it was planned, as YYYY-MM-DD.
    author, note : str, default ""
        What the user says of the study.
    """

    name: str
    task: str
    setup: Mapping[str, Any]
    plan: StudyPlan
    metric: MetricDescription
    versions: Mapping[str, str]
    command: str
    contenders: tuple[ContenderRecord, ...]
    trials: tuple[Trial, ...]
    earlier_plans: tuple[StudyPlan, ...] = ()
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
        return self._trials_by_part.get((optimizer, phase), ())

    @cached_property
    def _trials_by_part(self) -> dict[tuple[str, str], tuple[Trial, ...]]:
        """The trials of each contender and phase, by number: reports ask thousands of times."""
        found: dict[tuple[str, str], list[Trial]] = {}
        for trial in sorted(self.trials, key=lambda trial: trial.number):
            found.setdefault((trial.optimizer, trial.phase), []).append(trial)
        return {part: tuple(trials) for part, trials in found.items()}

    def to_dict(self) -> dict[str, Any]:
        """Give everything as plain values for JSON: null for what is not finite."""
        content: dict[str, Any] = to_json(self)
        return content

    def save(self, path: str | PathLike[str]) -> None:
        """Write a JSON file, curves to six digits, whole or not at all; :func:`load` reads it.

        It has the verdicts too, for other programs: see
        :class:`~steppe.compare.records.verdicts.Verdict`.

        Parameters
        ----------
        path : str or path
            The file; missing directories are made. It is compressed by gzip if its name ends in
            ".gz", to less than half.

        Raises
        ------
        OSError
            It cannot be written.
        """
        # Imported here because readings are taken from these records.
        from steppe.compare.records.verdicts import verdicts

        content = {**self.to_dict(), _VERDICTS: to_json(verdicts(self))}
        for trial in content["trials"]:
            if trial["outcome"]:
                # Of all else every digit is kept: equal differences must stay equal.
                trial["outcome"]["curve"] = _short(trial["outcome"]["curve"])
        # A line for each trial: readable enough, and a change shows where it is.
        trials = ",\n".join(_compact(trial) for trial in content.pop("trials"))
        text = f'{_compact(content)[:-1]},"trials":[\n{trials}\n]}}\n'
        encoded = text.encode()
        if str(path).lower().endswith(".gz"):
            # Without the time, so that the same study is the same file.
            encoded = gzip.compress(encoded, mtime=0)

        def write(file: IO[bytes]) -> None:
            file.write(encoded)

        write_whole(Path(path), write)


def load(path: str | PathLike[str]) -> StudyResults:
    """Read what :meth:`StudyResults.save` has written.

    Parameters
    ----------
    path : str or path
        The JSON file, as ``steppe report --json`` writes it.

    Raises
    ------
    ValueError
        The file is something else, or damaged; the message names the field.
    OSError
        It cannot be read.
    """
    try:
        content = read_json(Path(path))
        if isinstance(content, dict):
            # Anybody may have edited them: they are computed from the trials whenever they show.
            content.pop(_VERDICTS, None)
            _check_direction(content.get("metric"))
        found = from_json(StudyResults, content)
        check_results(found)
    except ValueError as error:
        raise ValueError(f"{path} is no study saved by steppe report --json: {error}") from error
    return found


def _check_direction(metric: Any) -> None:
    """Refuse a metric that does not say which way is better: that has no default in a file."""
    if isinstance(metric, dict) and "higher_is_better" not in metric:
        raise ValueError("metric.higher_is_better is missing: expected true or false")


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _short(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _short(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_short(each) for each in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


leave_out_defaults(MetricDescription, "of_mean")
leave_out_defaults(StudyPlan, "searched")
