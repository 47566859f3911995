"""A study goes on elsewhere from its exported trials, and ends as if it had stayed."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.study_storages import Open, opened
from helpers.synthetic_studies import diverged, outcome
from steppe.compare.execution.study_registry import read_study, save_study
from steppe.compare.execution.trial_queue import Assignment, TrialQueue
from steppe.compare.execution.worker import work
from steppe.compare.planning.continuation import continue_study
from steppe.compare.planning.presets import USUAL
from steppe.compare.planning.study import PlannedStudy, StudyOptions, plan_study
from steppe.compare.records.json_format import to_json
from steppe.compare.records.results import (
    POOL,
    RECOMMENDED,
    StudyPlan,
    StudyResults,
    Trial,
    load,
)
from steppe.compare.tasks import makers
from steppe.compare.tasks.makers import TaskMaker
from steppe.compare.training.run import RunContext

pytestmark = pytest.mark.thorough

__all__ = ["opened"]

# Of the baseline, whose weight decay is searched, 3 · 3; of the other only the pool.
TRIALS = 12


@pytest.fixture
def study(toy_task: TaskMaker, context: RunContext) -> PlannedStudy:
    options = StudyOptions(
        ["adamw", "rprop"], budget=1, trials=3, lr=0.1, study_seed=4, author="Ada", note="half"
    )
    return plan_study("toy", options, USUAL, context, command="steppe compare toy")


@pytest.fixture
def begun(study: PlannedStudy, opened: Open, tmp_path: Path) -> TrialQueue:
    """Plan the study in a storage."""
    storage = opened(str(tmp_path / "here"), create=True)
    return TrialQueue(storage, save_study(storage, study))


def exported(queue: TrialQueue, path: Path) -> StudyResults:
    queue.results().save(path)
    return load(path)


def taken_over(results: StudyResults, storage: Any, place: RunContext) -> TrialQueue:
    """Do what ``steppe compare --continue`` does with a file, in an empty storage."""
    queue = TrialQueue(storage, save_study(storage, continue_study(results, place)), plan=False)
    queue.take_over(results.trials)
    queue.add_missing_trials()
    return queue


def numbers(trial: Trial, *, curve: bool) -> str:
    """Give all that a trial has come to, to the last digit, but for what it took."""
    assert trial.outcome is not None, trial.error
    content = to_json(trial.outcome)
    del content["costs"]
    del content["curve"]["seconds"]
    if not curve:
        del content["curve"]
    key = [trial.optimizer, trial.phase, trial.number, trial.seed, dict(trial.settings)]
    return json.dumps([*key, content], sort_keys=True)


@pytest.mark.parametrize("done", [0, 4, 10])
def test_half_a_study_ends_elsewhere_with_the_same_numbers(
    study: PlannedStudy,
    begun: TrialQueue,
    opened: Open,
    context: RunContext,
    tmp_path: Path,
    done: int,
) -> None:
    """Kept in the middle of the pool, or of the runs at recommended settings."""

    class EnoughError(Exception):
        pass

    ended: list[str] = []

    def count(assignment: Assignment, how: str) -> None:
        ended.append(how)
        if len(ended) == done:
            raise EnoughError

    if done:
        with pytest.raises(EnoughError):
            work(begun.storage, study, context, count)
    half = exported(begun, tmp_path / "half.json")
    assert len(half.trials) == done
    storage = opened(str(tmp_path / "there"), create=True)
    there = taken_over(half, storage, replace(context, out=tmp_path / "there"))
    assert work(storage, there.study, replace(context, out=tmp_path / "there")) == TRIALS - done
    assert work(begun.storage, study, context) == TRIALS - done
    found, expected = there.results(), begun.results()
    assert found.complete
    kept = {(each.optimizer, each.phase, each.number) for each in half.trials}
    for one, other in zip(found.trials, expected.trials, strict=True):
        # Curves of what was taken over have six digits, as they stand in the file.
        curve = (one.optimizer, one.phase, one.number) not in kept
        assert numbers(one, curve=curve) == numbers(other, curve=curve)
    for name in ("name", "plan", "contenders", "created", "author", "note", "command", "setup"):
        assert getattr(found, name) == getattr(expected, name)


def test_what_failed_and_what_diverged_is_taken_over_as_it_is(
    study: PlannedStudy, begun: TrialQueue, opened: Open, context: RunContext, tmp_path: Path
) -> None:
    ends = {0: diverged(), 1: "MemoryError: no", 2: outcome(0.7)}
    for _ in range(6):
        taken = begun.take()
        assert taken is not None
        end = ends[taken.number] if taken.contender.name == "adamw" else outcome()
        if isinstance(end, str):
            begun.fail(taken, end, "here")
        else:
            begun.finish(taken, end, "here")
    half = exported(begun, tmp_path / "half.json")
    storage = opened(str(tmp_path / "there"), create=True)
    there = taken_over(half, storage, context)
    assert there.results().to_dict() == half.to_dict()
    assert [t.error for t in there.results().trials_of("adamw", POOL)] == ["", ends[1], ""]
    # They are not tried again, and what is recommended is the best of them.
    found = []
    while (taken := there.take()) is not None:
        found.append(taken)
        there.finish(taken, outcome(), "there")
    assert [each.phase for each in found] == ["default"] * 3 + ["recommended"] * 3
    (adamw, _) = study.contenders
    assert found[-1].settings == study.settings(adamw, POOL, 2)
    assert there.results().complete
    assert read_study(str(tmp_path / "there")).to_dict() == there.results().to_dict()


def test_what_waits_here_is_taken_over_and_not_trained_again(
    begun: TrialQueue, opened: Open, context: RunContext, tmp_path: Path
) -> None:
    """A study comes back to where it was planned."""
    for _ in range(2):
        taken = begun.take()
        assert taken is not None
        begun.finish(taken, outcome(), "here")
    storage = opened(str(tmp_path / "there"), create=True)
    there = taken_over(exported(begun, tmp_path / "half.json"), storage, context)
    while (taken := there.take()) is not None:
        there.finish(taken, outcome(), "there")
    running = begun.take()
    assert running is not None
    begun.take_over(exported(there, tmp_path / "whole.json").trials)
    # Only what a worker is at is left.
    assert begun.take() is None
    assert begun.progress()[0] == TRIALS - 1
    assert begun.finish(running, outcome(), "here")
    assert begun.results().complete
    assert len(begun._trials._optuna_study.get_trials()) == TRIALS


def test_taking_over_twice_adds_nothing(
    begun: TrialQueue, opened: Open, context: RunContext, tmp_path: Path
) -> None:
    for _ in range(3):
        taken = begun.take()
        assert taken is not None
        begun.finish(taken, outcome(), "here")
    half = exported(begun, tmp_path / "half.json")
    storage = opened(str(tmp_path / "there"), create=True)
    queue = taken_over(half, storage, context)
    count = len(queue._trials._optuna_study.get_trials())
    assert count == TRIALS
    # What has ended here meanwhile counts before what the file brings.
    taken = queue.take()
    assert taken is not None
    queue.finish(taken, outcome(0.1), "there")
    again = taken_over(half, storage, context)
    assert len(again._trials._optuna_study.get_trials()) == count
    assert len(again.results().trials) == 4


def with_trial(results: StudyResults, index: int, **changes: Any) -> StudyResults:
    trials = list(results.trials)
    trials[index] = replace(trials[index], **changes)
    return replace(results, trials=tuple(trials))


Edit = Callable[[StudyResults], StudyResults]

EDITS: dict[str, tuple[Edit, str]] = {
    "seed": (
        lambda found: with_trial(found, 0, seed=7),
        r"seed of adamw, trial 0 must be \d+, got 7",
    ),
    "settings": (
        lambda found: with_trial(found, 1, settings={"lr": 0.1, "weight_decay": 0.5}),
        r"settings of adamw, trial 1 must be \{.*\}, got \{'lr': 0.1, 'weight_decay': 0.5\}",
    ),
    "default": (
        lambda found: with_trial(found, 3, settings={"lr": 0.1, "weight_decay": 0.5}),
        "settings of adamw, default settings, run 0 must be .*'weight_decay': 0.01",
    ),
    "recommended": (
        lambda found: with_trial(found, 6, settings={"lr": 0.1, "weight_decay": 0.5}),
        "settings of adamw, recommended settings, run 0 must be",
    ),
    "study seed": (
        lambda found: replace(found, plan=replace(found.plan, study_seed=5)),
        "name must be toy-[0-9a-f]{8}, by its setup and versions: toy-",
    ),
    "setup": (
        lambda found: replace(found, setup={**found.setup, "clip": 0.5}),
        "name must be toy-[0-9a-f]{8}, by its setup and versions: toy-",
    ),
    "name": (
        lambda found: replace(found, name="toy-01234567"),
        "name must be toy-[0-9a-f]{8}, by its setup and versions: toy-01234567",
    ),
    "metric": (
        lambda found: replace(found, metric=replace(found.metric, higher_is_better=False)),
        "metric must be Metric.*higher_is_better=True.*, got Metric.*higher_is_better=False",
    ),
    "epochs": (
        lambda found: replace(
            found,
            contenders=(found.contenders[0], replace(found.contenders[1], epochs=2)),
        ),
        "epochs of rprop must be 1, got 2",
    ),
    "optimizer's source": (
        lambda found: replace(
            found,
            contenders=(found.contenders[0], replace(found.contenders[1], source="0123")),
        ),
        "source of rprop must be '', that of the class here, got '0123'",
    ),
    "torch": (
        lambda found: replace(found, versions={**found.versions, "torch": "1.4"}),
        r"not the code that the study was planned with: torch \S+ for 1.4",
    ),
    "source": (
        lambda found: replace(found, versions={**found.versions, "source": "0123"}),
        r"not the code that the study was planned with: source \w+ for 0123",
    ),
    "optimizer": (
        lambda found: replace(
            found, contenders=(replace(found.contenders[0], name="adamwm"),), trials=(),
            plan=StudyPlan(1, 3, study_seed=4),
        ),
        "did you mean adamw",
    ),
    "space": (
        lambda found: replace(
            found,
            contenders=(
                replace(
                    found.contenders[0],
                    space={"weight_decay": {"low": 1e-5, "high": 1.0, "log": True}},
                ),
                *found.contenders[1:],
            ),
        ),
        "settings of adamw, trial 0 must be",
    ),
}  # fmt: skip


def test_what_was_edited_is_refused_by_its_name(begun: TrialQueue, context: RunContext) -> None:
    while (taken := begun.take()) is not None:
        begun.finish(taken, outcome(0.9 + taken.number / 100), "here")
    results = begun.results()
    assert results.trials[6].phase == RECOMMENDED
    continue_study(results, context)
    for edit, message in EDITS.values():
        with pytest.raises(ValueError, match=message):
            continue_study(edit(results), context)


def test_other_data_is_refused(
    begun: TrialQueue, toy_task: TaskMaker, context: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(toy_task.read(), fingerprint="other")
    monkeypatch.setitem(makers.TASKS, "toy", replace(toy_task, read=lambda: other))
    with pytest.raises(ValueError, match=r"the data of toy here \(other\) is not what the study"):
        continue_study(begun.results(), context)


def test_earlier_plans_come_along(
    study: PlannedStudy, begun: TrialQueue, opened: Open, context: RunContext, tmp_path: Path
) -> None:
    while (taken := begun.take()) is not None:
        begun.finish(taken, outcome(), "here")
    larger = save_study(begun.storage, replace(study, plan=replace(study.plan, trials=6)))
    half = exported(TrialQueue(begun.storage, larger), tmp_path / "half.json")
    storage = opened(str(tmp_path / "there"), create=True)
    there = taken_over(half, storage, context)
    assert there.study.earlier_plans == there.results().earlier_plans == (study.plan,)
    assert there.study.created == study.created
