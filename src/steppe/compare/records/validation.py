"""Check that a study's results fit together, so that reports can rely on it.

The types of all fields are checked when a record is read, by ``json_format``; here it is their
ranges, and what one field says about another. A file may be somebody else's, damaged, or edited.
"""

import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

import numpy as np
from numpy.typing import NDArray

from steppe._shared.messages import shortened
from steppe.compare.records.best_of_k import MOST_TRIALS, TRIALS_PER_BUDGET
from steppe.compare.records.json_format import from_json
from steppe.compare.records.of_mean import OF_MEAN
from steppe.compare.records.packed_numbers import MOST_LOSSES, stretches, unpack
from steppe.compare.records.phases import DEFAULT, PHASES, POOL, RECOMMENDED
from steppe.compare.records.second_task import SecondTask

if TYPE_CHECKING:
    from steppe.compare.records.results import (
        ContenderRecord,
        Outcome,
        StudyPlan,
        StudyResults,
        Trial,
    )

_T = TypeVar("_T")

# No time and no count of a run is larger; squares of larger numbers overflow.
_HUGE = 1e100


@dataclass(frozen=True)
class _Setup:
    """What reports read of a study's setup; the rest is shown as it is."""

    model: str
    epochs: int
    steps_per_epoch: int
    train_samples: int
    validation_samples: int
    test_samples: int
    length: int | None = None
    stream: tuple[int, ...] = ()
    domain_incremental: bool = False
    then: SecondTask | None = None


def check_results(results: "StudyResults") -> None:
    """Check ranges, names, and lengths that must agree.

    Raises
    ------
    ValueError
        The first thing that is wrong, with its field.
    """
    setup = _checked_setup(results.setup)
    for field, plan in [("plan", results.plan), *_numbered("earlier_plans", results.earlier_plans)]:
        _check_plan(plan, field)
    factor = results.metric.factor
    _require(math.isfinite(factor) and factor > 0, "metric.factor", "a number above 0", factor)
    _require(bool(results.contenders), "contenders", "at least one", "none")
    names = [each.name for each in results.contenders]
    _require_unique("contenders", names)
    for field, contender in _numbered("contenders", results.contenders):
        _check_contender(contender, field, names)
    for name in results.plan.family:
        _require_known("plan.family", name, names[1:])
    _require_unique("plan.family", list(results.plan.family))
    by_name = dict(zip(names, results.contenders, strict=True))
    for field, trial in _numbered("trials", results.trials):
        _require_known(f"{field}.optimizer", trial.optimizer, names)
        _require_known(f"{field}.phase", trial.phase, PHASES)
        contender = by_name[trial.optimizer]
        planned = results.plan.planned(contender, trial.phase)
        _require(
            0 <= trial.number < planned,
            f"{field}.number",
            f"a number from 0, below {planned}",
            trial.number,
        )
        _check_trial(trial, field, setup, contender)
    runs = [f"{each.optimizer}, {each.phase} {each.number}" for each in results.trials]
    _require_unique("trials", runs)
    _check_pairs(results)
    _check_samples(results, setup)


def _check_plan(plan: "StudyPlan", field: str) -> None:
    _require(plan.budget >= 1, f"{field}.budget", "at least 1", plan.budget)
    fewest = TRIALS_PER_BUDGET * plan.budget
    wanted = f"at least {fewest}, {TRIALS_PER_BUDGET} times the budget"
    _require(plan.trials >= fewest, f"{field}.trials", wanted, plan.trials)
    for name in ("trials", "repeats"):
        planned = getattr(plan, name)
        _require(planned <= MOST_TRIALS, f"{field}.{name}", f"at most {MOST_TRIALS}", planned)
    _require(plan.study_seed >= 0, f"{field}.study_seed", "at least 0", plan.study_seed)
    _require(plan.repeats >= 1, f"{field}.repeats", "at least 1", plan.repeats)


def _check_pairs(results: "StudyResults") -> None:
    """Require that trials of one phase and number have one seed, and others have others."""
    seeds: dict[tuple[str, int], int] = {}
    for field, trial in _numbered("trials", results.trials):
        first = seeds.setdefault((trial.phase, trial.number), trial.seed)
        wanted = f"{first}, as of the other optimizers' {trial.phase} trial {trial.number}"
        _require(trial.seed == first, f"{field}.seed", wanted, trial.seed)
    of_pool = [str(seed) for (phase, _), seed in seeds.items() if phase == POOL]
    _require_unique("seeds of trials", of_pool)


def _check_samples(results: "StudyResults", setup: _Setup) -> None:
    """Require that runs have as many samples as the study, and that these give their results."""
    for field, trial in _numbered("trials", results.trials):
        if trial.outcome is None:
            continue
        for part in ("validation", "test"):
            count = getattr(setup, f"{part}_samples")
            for kind in ("scores", "losses"):
                name = f"{part}_{kind}"
                _check_values(
                    f"{field}.outcome.samples.{name}",
                    getattr(trial.outcome.samples, name),
                    count,
                    _result_of_mean(results, setup, trial.outcome, name),
                )
        for measure, scores in trial.outcome.robustness.items():
            for name in ("validation_samples", "test_samples"):
                field_of_measure = f"{field}.outcome.robustness[{measure!r}].{name}"
                _unpacked(field_of_measure, getattr(scores, name))


def _unpacked(field: str, text: str) -> NDArray[np.float64]:
    try:
        return unpack(text)
    except ValueError as error:
        raise ValueError(f"{field} {error}") from None


def _check_values(
    field: str, text: str, count: int, result: tuple[float, Callable[[float], float]] | None
) -> None:
    values = _unpacked(field, text)
    if not len(values):
        return
    equal = {count, stretches(count)}
    # Studies of earlier versions have as many stretches as can be, of unequal lengths.
    known = equal | {MOST_LOSSES}
    _require(len(values) in known, field, f"of {count} samples", len(values))
    if result is None or len(values) not in equal:
        return
    final, of_mean = result
    mean, rounding = float(values.mean()), 0.002 * float(np.abs(values).max())
    low, high = of_mean(mean - rounding), of_mean(mean + rounding)
    slack = 1e-9 + 1e-4 * abs(final)
    wanted = f"samples whose mean gives {final:.6g}"
    if not math.isfinite(mean) or math.isinf(final):
        return
    is_same = not low - slack > final and not high + slack < final
    _require(is_same and not math.isnan(final), field, wanted, f"{of_mean(mean):.6g}")


def _result_of_mean(
    results: "StudyResults", setup: _Setup, outcome: "Outcome", name: str
) -> tuple[float, Callable[[float], float]] | None:
    """Return the result that samples give, and how; of a stream's scores the mean is another."""
    part, _, kind = name.partition("_")
    if kind == "losses":
        return getattr(outcome.final, f"{part}_loss"), float
    if setup.stream:
        return None
    return getattr(outcome.final, f"{part}_score"), OF_MEAN[results.metric.of_mean]


def _numbered(field: str, records: Sequence[_T]) -> Iterator[tuple[str, _T]]:
    return ((f"{field}[{index}]", record) for index, record in enumerate(records))


def _checked_setup(content: Mapping[str, Any]) -> _Setup:
    known = {each.name: content[each.name] for each in fields(_Setup) if each.name in content}
    try:
        setup = from_json(_Setup, known)
    except ValueError as error:
        raise ValueError(f"setup.{error}") from error
    for name in ("epochs", "steps_per_epoch", "train_samples", "test_samples"):
        _require(getattr(setup, name) >= 1, f"setup.{name}", "at least 1", getattr(setup, name))
    _require(
        setup.validation_samples >= 0,
        "setup.validation_samples",
        "at least 0",
        setup.validation_samples,
    )
    _require(setup.length is None or setup.length >= 1, "setup.length", "at least 1", setup.length)
    _require(
        all(steps >= 1 for steps in setup.stream), "setup.stream", "steps, at least 1", setup.stream
    )
    if setup.stream:
        _require(
            setup.epochs % len(setup.stream) == 0,
            "setup.epochs",
            f"a multiple of the {len(setup.stream)} tasks",
            setup.epochs,
        )
    if setup.then is not None:
        steps, loss = setup.then.steps, setup.then.loss
        _require(steps >= 1, "setup.then.steps", "at least 1", steps)
        _require(loss is None or loss > 0, "setup.then.loss", "a number above 0", loss)
    return setup


def _check_contender(contender: "ContenderRecord", field: str, names: Iterable[str]) -> None:
    _require(bool(contender.name), f"{field}.name", "a name", repr(contender.name))
    _check_settings(contender.defaults, f"{field}.defaults")
    for name in contender.control_for:
        _require_known(f"{field}.control_for", name, names)
    _require(contender.epochs >= 1, f"{field}.epochs", "at least 1", contender.epochs)
    for name, space in contender.space.items():
        _check_space(space, f"{field}.space.{name}")


def _check_space(space: Any, field: str) -> None:
    valid = isinstance(space, Mapping) and (
        _is_range(space) if space.keys() != {"choices"} else _is_choice(space["choices"])
    )
    wanted = '{"low": …, "high": …, "log": …} or {"choices": […]} of numbers'
    _require(valid, field, wanted, space)


def _is_range(space: Mapping[str, Any]) -> bool:
    low, high, log = space.get("low"), space.get("high"), space.get("log", False)
    return (
        space.keys() <= {"low", "high", "log"}
        and _is_number(low)
        and _is_number(high)
        and isinstance(log, bool)
        and low < high
        and (low > 0 or not log)
    )


def _is_choice(choices: Any) -> bool:
    return isinstance(choices, list | tuple) and bool(choices) and all(map(_is_number, choices))


def _is_number(value: Any) -> TypeGuard[float]:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    # Not math.isfinite, which overflows on a long integer.
    return number and abs(value) <= sys.float_info.max


def _check_trial(trial: "Trial", field: str, setup: _Setup, contender: "ContenderRecord") -> None:
    _require(trial.seed >= 0, f"{field}.seed", "at least 0", trial.seed)
    _check_settings(trial.settings, f"{field}.settings")
    if trial.outcome is not None or trial.phase != RECOMMENDED:
        _check_searched(contender, trial, f"{field}.settings")
    failed = trial.outcome is None
    _require(bool(trial.error) or not failed, f"{field}.error", "why there is no outcome", "''")
    if trial.outcome is not None:
        _check_outcome(trial.outcome, f"{field}.outcome", setup, contender.epochs)


def _check_outcome(outcome: "Outcome", field: str, setup: _Setup, factor: int) -> None:
    epochs, planned = len(outcome.curve), factor * setup.epochs
    # The epoch in which the loss stopped being finite is not in the curve.
    right = epochs < planned if outcome.diverged else epochs == planned
    wanted = f"{'below' if outcome.diverged else 'of'} {planned} epochs"
    _require(right, f"{field}.curve", wanted, epochs)
    for number, epoch in enumerate(outcome.curve):
        known = number * len(setup.stream) // planned + 1 if setup.stream else 0
        where = f"{field}.curve[{number}]"
        _require(len(epoch.tasks) == known, f"{where}.tasks", f"{known} scores", len(epoch.tasks))
        _require_not_negative(f"{where}.seconds", epoch.seconds)
    for name, value in vars(outcome.costs).items():
        _require_not_negative(f"{field}.costs.{name}", value)
    _check_fine_tuning(outcome, f"{field}.fine_tuning", setup.then)
    points = [each for point in outcome.curvature.density for each in point]
    _require(
        all(map(math.isfinite, points)), f"{field}.curvature.density", "finite numbers", "null"
    )


def _check_fine_tuning(outcome: "Outcome", field: str, then: SecondTask | None) -> None:
    """Require a curve for each lr of the second task, with all of its points."""
    wanted = () if then is None or outcome.diverged else then.lrs
    found = tuple(curve.lr for curve in outcome.fine_tuning)
    _require(found == wanted, field, f"curves of the lrs {wanted}", found)
    for where, curve in _numbered(field, outcome.fine_tuning):
        steps = then.measured_steps() if then else ()
        _require(curve.steps == steps, f"{where}.steps", f"{steps}", curve.steps)
        for name, values in vars(curve).items():
            if name not in ("lr", "steps"):
                _require(
                    len(values) == len(steps), f"{where}.{name}", f"{len(steps)} numbers", values
                )


def _check_settings(settings: Mapping[str, float], field: str) -> None:
    for name, value in settings.items():
        _require(math.isfinite(value), f"{field}.{name}", "a number", "null")


def _check_searched(contender: "ContenderRecord", trial: "Trial", field: str) -> None:
    """Require that a trial has a value of all that was searched, which its logarithm may need."""
    for name, space in contender.space.items():
        _require(name in trial.settings, f"{field}.{name}", "there: it was searched", "nothing")
        if space.get("log") and trial.phase != DEFAULT:
            _require(trial.settings[name] > 0, f"{field}.{name}", "> 0", trial.settings[name])


def _require_not_negative(field: str, value: float) -> None:
    """Require a time or a size; NaN where it was not measured."""
    _require(math.isnan(value) or 0 <= value < _HUGE, field, f"from 0 to {_HUGE}", value)


def _require_known(field: str, name: str, known: Iterable[str]) -> None:
    known = list(known)
    _require(name in known, field, f"one of {', '.join(known)}", repr(name))


def _require_unique(field: str, names: list[str]) -> None:
    (name, count), *_ = Counter(names).most_common(1) or [("", 0)]
    _require(count <= 1, field, "different from each other", f"{name} {count} times")


def _require(condition: bool, field: str, wanted: str, value: object) -> None:
    if not condition:
        raise ValueError(f"{field} must be {wanted}, got {shortened(str(value))}")
