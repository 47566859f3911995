"""Check that a study's results fit together, so that reports can rely on it.

The types of all fields are checked when a record is read, by ``json_format``; here it is their
ranges, and what one field says about another. A file may be somebody else's, damaged, or edited.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeGuard

from steppe.compare.records.json_format import from_json
from steppe.compare.records.phases import PHASES, TEST

if TYPE_CHECKING:
    from steppe.compare.records.results import Contender, Outcome, StudyResults, Trial


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


def check_results(results: "StudyResults") -> None:
    """Check ranges, names, and lengths that must agree.

    Raises
    ------
    ValueError
        The first thing that is wrong, with its field.
    """
    setup = _checked_setup(results.setup)
    _require(results.budget >= 0, "budget", "at least 0", results.budget)
    _require(results.seeds >= 1, "seeds", "at least 1", results.seeds)
    factor = results.metric.factor
    _require(math.isfinite(factor) and factor > 0, "metric.factor", "a number above 0", factor)
    _require(bool(results.contenders), "contenders", "at least one", "none")
    names = [each.name for each in results.contenders]
    _require_unique("contenders", names)
    for index, contender in enumerate(results.contenders):
        _check_contender(contender, f"contenders[{index}]", names)
    by_name = dict(zip(names, results.contenders, strict=True))
    for index, trial in enumerate(results.trials):
        field = f"trials[{index}]"
        _require_known(f"{field}.optimizer", trial.optimizer, names)
        _require_known(f"{field}.phase", trial.phase, PHASES)
        planned = results.seeds
        if trial.phase != TEST:
            planned = by_name[trial.optimizer].tuning_trials(results.budget)
        _require(
            0 <= trial.number < planned,
            f"{field}.number",
            f"a number from 0, below {planned}",
            trial.number,
        )
        _check_trial(trial, field, setup)
    runs = [f"{each.optimizer}, {each.phase} {each.number}" for each in results.trials]
    _require_unique("trials", runs)
    seeds = [f"{each.optimizer}, seed {each.seed}" for each in results.trials if each.phase == TEST]
    _require_unique("trials", seeds)


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
    return setup


def _check_contender(contender: "Contender", field: str, names: Iterable[str]) -> None:
    _require(bool(contender.name), f"{field}.name", "a name", repr(contender.name))
    _check_settings(contender.defaults, f"{field}.defaults")
    for name in (*contender.control_for, *filter(None, [contender.follows])):
        _require_known(f"{field}.control_for or follows", name, names)
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
    return number and math.isfinite(value)


def _check_trial(trial: "Trial", field: str, setup: _Setup) -> None:
    _require(trial.seed >= 0, f"{field}.seed", "at least 0", trial.seed)
    _check_settings(trial.settings, f"{field}.settings")
    failed = trial.outcome is None
    _require(bool(trial.error) or not failed, f"{field}.error", "why there is no outcome", "''")
    if trial.outcome is not None:
        _check_outcome(trial.outcome, f"{field}.outcome", setup)


def _check_outcome(outcome: "Outcome", field: str, setup: _Setup) -> None:
    epochs = len(outcome.curve)
    # The epoch in which the loss stopped being finite is not in the curve.
    right = epochs < setup.epochs if outcome.diverged else epochs == setup.epochs
    wanted = f"{'below' if outcome.diverged else 'of'} {setup.epochs} epochs"
    _require(right, f"{field}.curve", wanted, epochs)
    for number, epoch in enumerate(outcome.curve):
        known = number * len(setup.stream) // setup.epochs + 1 if setup.stream else 0
        where = f"{field}.curve[{number}]"
        _require(len(epoch.tasks) == known, f"{where}.tasks", f"{known} scores", len(epoch.tasks))
        _require_not_negative(f"{where}.seconds", epoch.seconds)
    for name, value in vars(outcome.costs).items():
        _require_not_negative(f"{field}.costs.{name}", value)
    points = [each for point in outcome.curvature.density for each in point]
    _require(
        all(map(math.isfinite, points)), f"{field}.curvature.density", "finite numbers", "null"
    )


def _check_settings(settings: Mapping[str, float], field: str) -> None:
    for name, value in settings.items():
        _require(math.isfinite(value), f"{field}.{name}", "a number", "null")


def _require_not_negative(field: str, value: float) -> None:
    """Require a time or a size; NaN where it was not measured."""
    _require(math.isnan(value) or value >= 0, field, "at least 0", value)


def _require_known(field: str, name: str, known: Iterable[str]) -> None:
    known = list(known)
    _require(name in known, field, f"one of {', '.join(known)}", repr(name))


def _require_unique(field: str, names: list[str]) -> None:
    (name, count), *_ = Counter(names).most_common(1) or [("", 0)]
    _require(count <= 1, field, "different from each other", f"{name} {count} times")


def _require(condition: bool, field: str, wanted: str, value: object) -> None:
    if not condition:
        raise ValueError(f"{field} must be {wanted}, got {value}")
