"""Every trial of a study is run once, in its turn, and what came of it is kept."""

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.exceptions import StorageInternalError

from helpers.concurrent_processes import plan as plan_at_once
from helpers.concurrent_processes import together, work_off
from helpers.postgresql_server import KINDS, postgres
from helpers.study_storages import Open, forget, opened
from helpers.synthetic_studies import diverged, outcome
from steppe.compare.execution.study_registry import find_study, save_study
from steppe.compare.execution.study_storage import open_storage
from steppe.compare.execution.trial_queue import TUNING_SEED, Assignment, TrialQueue
from steppe.compare.planning.study import Study
from steppe.compare.records.json_format import from_json
from steppe.compare.records.results import (
    TEST,
    TUNE,
    Contender,
    Epoch,
    Metric,
    Outcome,
    StudyResults,
)
from steppe.compare.training.run import RunSettings

pytestmark = pytest.mark.thorough

__all__ = ["opened", "postgres"]

LR = {"low": 1e-4, "high": 1e-2, "log": True}
ADAMW = Contender("adamw", space={"lr": LR}, defaults={"lr": 1e-3, "weight_decay": 0.0})
ADAMCM = Contender(
    "adamcm",
    space={"lr": LR, "priority_decay": {"choices": (0.7, 0.9)}},
    defaults={"lr": 1e-3, "priority_decay": 0.7},
)
DOUBLED = Contender("adam+2lr", control_for=("adamcm",), follows="adamcm")
EPOCH = Epoch(2.0, 2.2, 0.1, 1e-3, 1.0)


def make(*contenders: Contender, **changes: Any) -> Study:
    fields: dict[str, Any] = {
        "setup": RunSettings(
            "digits", "mlp", None, "abc", epochs=3, steps_per_epoch=4, batch_size=32
        ),
        "budget": 3,
        "seeds": 2,
        "contenders": contenders or (ADAMW, ADAMCM),
        "metric": Metric(),
        "facts": {"train_samples": 1_006},
        "command": "steppe compare digits",
        "versions": {"torch": "2", "steppe": "1", "source": "f00"},
    }
    return Study(**{**fields, **changes})


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the tables once for all tests."""
    directory = tmp_path_factory.mktemp("storage")
    open_storage(str(directory), create=True)
    return directory / "study.sqlite"


@pytest.fixture
def where(empty: Path, tmp_path: Path) -> str:
    return str(shutil.copy(empty, tmp_path))


@pytest.fixture
def storage(where: str, opened: Open) -> Any:
    return opened(where)


def key(taken: Assignment) -> tuple[str, str, int]:
    return taken.contender.name, taken.phase, taken.number


def everything(study: Study) -> list[tuple[str, str, int]]:
    tuned = [(c.name, TUNE, n) for c in study.contenders if not c.follows
             for n in range(study.budget)]  # fmt: skip
    return sorted(tuned + [(c.name, TEST, n) for c in study.contenders for n in range(study.seeds)])


def run(
    queue: TrialQueue, come_of: Callable[[Assignment], Outcome | str] = lambda taken: outcome()
) -> list[Assignment]:
    """Take all that can be taken, and end it; what comes of it as a string is an error."""
    found = []
    while (taken := queue.take()) is not None:
        came = come_of(taken)
        if isinstance(came, str):
            assert queue.fail(taken, came, "here")
        else:
            assert queue.finish(taken, came, "here")
        found.append(taken)
    return found


def numbered(study: Study, name: str, values: Sequence[Any]) -> Callable[[Assignment], Any]:
    """Let these come of a contender's tuning trials, and the usual of all others."""

    def come_of(taken: Assignment) -> Any:
        mine = taken.contender.name == name and taken.phase == TUNE
        return values[taken.number] if mine else outcome(0.5)

    return come_of


def test_budgets_are_exact(storage: Any) -> None:
    study = make()
    queue = TrialQueue(storage, study)
    assert queue.trial_count() == 2 * (3 + 2)
    assert not queue.all_ended()
    taken = run(queue)
    assert sorted(map(key, taken)) == everything(study)
    assert queue.all_ended()
    # Tuning comes first, and everybody's first trial before anybody's second.
    assert [key(each)[1:] for each in taken] == [
        *((TUNE, number) for number in (0, 0, 1, 1, 2, 2)),
        *((TEST, number) for number in (0, 0, 1, 1)),
    ]
    assert {each.seed for each in taken if each.phase == TUNE} == {TUNING_SEED}
    assert [each.seed for each in taken if each.phase == TEST] == [0, 0, 1, 1]
    for again in (queue, TrialQueue(storage, study)):
        again.add_missing_trials()
        assert again.take() is None
    assert queue.results().complete


def test_the_first_trial_is_the_default_and_the_others_are_the_designs(storage: Any) -> None:
    study = make()
    taken = [each for each in run(TrialQueue(storage, study)) if each.phase == TUNE]
    for contender in study.contenders:
        settings = [dict(each.settings) for each in taken if each.contender == contender]
        assert settings == study.points(contender)
        assert settings[0] == contender.defaults
        assert len({tuple(each.items()) for each in settings}) == study.budget


def test_without_a_budget_everybody_runs_at_the_defaults(storage: Any) -> None:
    taken = run(TrialQueue(storage, make(budget=0)))
    assert [(each.phase, each.settings) for each in taken] == [
        (TEST, ADAMW.defaults), (TEST, ADAMCM.defaults)] * 2  # fmt: skip


def test_tests_wait_for_the_contenders_own_tuning(where: str, opened: Open) -> None:
    study = make(budget=1)
    one, other = (TrialQueue(opened(where), study) for _ in range(2))
    first, second = one.take(), other.take()
    assert first is not None
    assert second is not None
    assert {key(first), key(second)} == {("adamw", TUNE, 0), ("adamcm", TUNE, 0)}
    assert one.take() is None
    other.finish(second, outcome(), "there")
    assert [key(each)[:2] for each in run(one)] == [("adamcm", TEST)] * 2
    assert not one.all_ended()
    one.finish(first, outcome(), "here")
    assert [key(each)[:2] for each in run(other)] == [("adamw", TEST)] * 2
    assert one.all_ended()


@pytest.mark.parametrize(
    ("higher_is_better", "ends", "best"),
    [
        (True, [(0.8, 0.1), (0.9, 0.5), (0.7, 0.2)], 1),
        (True, [(0.9, 0.5), (0.9, 0.3), (0.9, 0.4)], 1),
        (True, [(0.9, 0.3), (0.9, 0.3), (0.9, 0.3)], 0),
        (False, [(0.8, 0.1), (0.9, 0.5), (0.7, 0.2)], 2),
        (False, [(0.8, 0.4), (0.8, 0.3), (0.9, 0.2)], 1),
    ],
)
def test_the_best_is_by_validation_score_and_among_equals_by_loss(
    storage: Any, higher_is_better: bool, ends: list[tuple[float, float]], best: int
) -> None:
    study = make(ADAMW, metric=Metric(higher_is_better=higher_is_better))
    queue = TrialQueue(storage, study)
    taken = run(queue, numbered(study, "adamw", [outcome(*each) for each in ends]))
    wanted = study.points(ADAMW)[best]
    assert [each.settings for each in taken if each.phase == TEST] == [wanted] * 2
    assert queue.results().chosen("adamw") == wanted


def test_what_diverged_or_failed_never_wins(storage: Any) -> None:
    study = make(ADAMW)
    # The one that diverged later had the best score of all on the way.
    late = replace(outcome(0.99), diverged=True)
    queue = TrialQueue(storage, study)
    taken = run(queue, numbered(study, "adamw", [late, "RuntimeError: no", outcome(0.1)]))
    assert taken[-1].settings == study.points(ADAMW)[2]
    errors = [trial.error for trial in queue.results().trials_of("adamw", TUNE)]
    assert errors == ["", "RuntimeError: no", ""]


@pytest.mark.parametrize("ends", [[diverged()] * 3, [diverged(), "no", "no"]])
def test_where_nothing_came_of_the_tuning_the_tests_say_so(storage: Any, ends: list[Any]) -> None:
    study = make(ADAMW, ADAMCM)
    queue = TrialQueue(storage, study)
    taken = run(queue, numbered(study, "adamw", ends))
    assert ("adamw", TEST) not in {key(each)[:2] for each in taken}
    assert queue.all_ended()
    tests = queue.results().trials_of("adamw", TEST)
    assert [trial.error for trial in tests] == ["no tuning trial ended with a finite loss"] * 2
    assert [trial.outcome for trial in tests] == [None] * 2
    assert len([each for each in taken if each.contender == ADAMCM]) == 5


def test_a_control_follows_its_leader_at_twice_the_lr(storage: Any) -> None:
    study = make(DOUBLED, ADAMCM)
    queue = TrialQueue(storage, study)
    taken = run(queue, numbered(study, "adamcm", [outcome(0.3), outcome(0.2), outcome(0.7)]))
    assert sorted(map(key, taken)) == everything(study)
    best = study.points(ADAMCM)[2]
    following = [each.settings for each in taken if each.contender == DOUBLED]
    # Adam has no buffer, hence no priority_decay.
    assert following == [{"lr": 2 * best["lr"]}] * 2
    assert queue.results().chosen("adam+2lr") == {"lr": 2 * best["lr"]}


def test_a_control_waits_for_its_leader(where: str, opened: Open) -> None:
    study = make(DOUBLED, ADAMCM, budget=1)
    one, other = (TrialQueue(opened(where), study) for _ in range(2))
    leading = one.take()
    assert leading is not None
    assert other.take() is None
    one.fail(leading, "no", "here")
    assert other.take() is None
    assert {trial.error for trial in one.results().trials_of("adam+2lr", TEST)} == {
        "no tuning trial ended with a finite loss"
    }


def test_a_control_of_another_leader_is_another(storage: Any) -> None:
    """A leader that is tuned otherwise may end at another lr; the control's runs are not shared."""
    fixed = Contender("adamcm", defaults={"lr": 5e-3, "priority_decay": 0.7})
    run(TrialQueue(storage, make(ADAMCM, DOUBLED)))
    other = TrialQueue(storage, make(fixed, DOUBLED))
    run(other)
    assert other.results().chosen("adam+2lr") == {"lr": 1e-2}


def test_more_seeds_and_contenders_add_only_what_is_missing(storage: Any) -> None:
    before = make(ADAMW)
    run(TrialQueue(storage, before))
    more = replace(before, seeds=4, contenders=(ADAMW, ADAMCM))
    assert more.name == before.name
    queue = TrialQueue(storage, more)
    assert sorted(map(key, run(queue))) == sorted(set(everything(more)) - set(everything(before)))
    assert queue.results().complete
    fewer = TrialQueue(storage, replace(before, seeds=1))
    assert fewer.take() is None
    assert fewer.all_ended()
    assert len(fewer.results().trials) == before.budget + 1


def test_what_two_have_planned_at_once_is_run_once(
    where: str, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make()
    slow, fast = (TrialQueue(opened(where), study, plan=False) for _ in range(2))
    add = optuna.Study.add_trial
    taken: list[Assignment | None] = []

    def add_late(part: optuna.Study, trial: Any) -> None:
        """Let the other plan everything, and begin, between the look and the first addition."""
        monkeypatch.undo()
        fast.add_missing_trials()
        taken.append(fast.take())
        add(part, trial)

    monkeypatch.setattr(optuna.Study, "add_trial", add_late)
    slow.add_missing_trials()
    states = [each.state.name for each in slow._trials._optuna_study.trials]
    assert len(states) > slow.trial_count()
    for queue in (slow, fast) * 4:
        taken.append(queue.take())
    # Its tuning is being run by both, and nobody begins any of it again.
    assert [each and key(each) for each in taken] == [
        *((name, TUNE, n) for n in range(3) for name in ("adamw", "adamcm")), None, None, None
    ]  # fmt: skip
    for each in taken:
        assert each is None or fast.finish(each, outcome(), "here")
    assert len(run(slow)) == 4
    assert slow.all_ended()
    assert fast.results().complete


@pytest.mark.parametrize("kind", KINDS)
def test_a_crowd_plans_and_works_off_each_trial_once(
    kind: str, request: pytest.FixtureRequest, opened: Open
) -> None:
    study = make(ADAMW, ADAMCM, DOUBLED, budget=2, seeds=1)
    if kind == "sqlite":
        where = request.getfixturevalue("where")
    else:
        where = request.getfixturevalue("postgres").database()
    queue = TrialQueue(opened(where, create=True), study, plan=False)
    together(plan_at_once, 3, where, study)
    done = together(work_off, 3, where, study)
    assert sorted(chain.from_iterable(done)) == everything(study)
    results = queue.results()
    assert results.complete
    assert sorted((t.optimizer, t.phase, t.number) for t in results.trials) == everything(study)


def test_a_lost_trial_is_run_again_until_it_gets_no_further(storage: Any) -> None:
    study = make(ADAMW, budget=1, seeds=1)
    queue = TrialQueue(storage, study)
    # The third attempt gets to an epoch, where another ten end as well.
    for attempt in range(12):
        assert not queue.all_ended()
        taken = queue.take()
        assert taken is not None
        assert key(taken) == ("adamw", TUNE, 0)
        if attempt >= 2:
            queue.record_epoch(taken, 1, EPOCH)
        queue.add_missing_trials()
        assert queue.take() is None
        forget(storage, taken.trial_id)
        queue.add_missing_trials()
    # Nothing is left to choose from.
    assert queue.take() is None
    assert queue.all_ended()
    assert [(trial.phase, trial.error) for trial in queue.results().trials] == [
        (TUNE, "its worker was lost 10 times"),
        (TEST, "no tuning trial ended with a finite loss"),
    ]


def test_a_lost_test_run_says_what_it_ran_with(storage: Any) -> None:
    study = make(ADAMW)
    queue = TrialQueue(storage, study)
    lost = 0
    while (taken := queue.take()) is not None:
        if key(taken)[1:] == (TEST, 0) and (lost := lost + 1):
            forget(storage, taken.trial_id)
            queue.add_missing_trials()
        else:
            queue.finish(taken, outcome(), "here")
    assert lost == 10
    tests = queue.results().trials_of("adamw", TEST)
    assert [trial.error for trial in tests] == ["its worker was lost 10 times", ""]
    assert [trial.settings for trial in tests] == [ADAMW.defaults] * 2


def test_what_was_given_back_is_there_at_once_and_does_not_count(storage: Any) -> None:
    queue = TrialQueue(storage, make(ADAMW, budget=1))
    for _ in range(5):
        taken = queue.take()
        assert taken is not None
        assert key(taken) == ("adamw", TUNE, 0)
        queue.release(taken)
    assert len(run(queue)) == 3
    assert queue.results().complete


def test_who_was_thought_dead_cannot_overwrite(where: str, opened: Open) -> None:
    study = make(ADAMW, budget=1)
    sleeper, other = (TrialQueue(opened(where), study) for _ in range(2))
    slept = sleeper.take()
    assert slept is not None
    assert sleeper.record_epoch(slept, 0, EPOCH)
    forget(sleeper.storage, slept.trial_id)
    other.add_missing_trials()
    again = other.take()
    assert again is not None
    assert key(again) == key(slept)
    for _ in range(2):
        assert not sleeper.record_epoch(slept, 1, EPOCH)
        assert not sleeper.finish(slept, outcome(0.1), "asleep")
        assert not sleeper.fail(slept, "dreamt", "asleep")
        sleeper.release(slept)
        if not again:
            break
        assert other.record_epoch(again, 0, EPOCH)
        assert other.finish(again, outcome(0.8), "awake")
        again = None
    (found,) = other.results().trials_of("adamw", TUNE)
    assert found.outcome == outcome(0.8)
    assert found.where == "awake"
    assert other.take() is not None


def test_a_result_whose_end_is_missing_is_none(
    storage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill between what came of a trial and its state: it is as if it had not been."""
    queue = TrialQueue(storage, make(ADAMW, budget=1))
    taken = queue.take()
    assert taken is not None

    def die(*_: Any) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(storage, "set_trial_state_values", die)
        with pytest.raises(KeyboardInterrupt):
            queue.finish(taken, outcome(0.9), "here")
    assert queue.results().trials == ()
    forget(storage, taken.trial_id)
    queue.add_missing_trials()
    run(queue, lambda taken: outcome(0.4))
    assert queue.results().trials_of("adamw", TUNE)[0].outcome == outcome(0.4)


def test_a_result_waits_for_a_storage_and_a_note_does_not(
    storage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = TrialQueue(storage, make(ADAMW, budget=1))
    taken = queue.take()
    assert taken is not None
    monkeypatch.setattr("steppe.compare.execution.study_storage._PAUSE_S", 0)
    flaky = dict.fromkeys(
        ("set_trial_intermediate_value", "set_trial_user_attr", "set_trial_state_values"), 2
    )

    def fail_twice(name: str) -> Callable[..., Any]:
        reliable = getattr(storage, name)

        def call(*arguments: Any) -> Any:
            flaky[name] -= 1
            if flaky[name] >= 0:
                raise StorageInternalError("away")
            return reliable(*arguments)

        return call

    for name in flaky:
        monkeypatch.setattr(storage, name, fail_twice(name))
    assert [queue.record_epoch(taken, number, EPOCH) for number in range(3)] == [True] * 3
    assert list(storage.get_trial(taken.trial_id).intermediate_values) == [2]
    assert queue.finish(taken, outcome(0.7), "here")
    assert max(flaky.values()) < 0
    assert queue.results().trials_of("adamw", TUNE)[0].outcome == outcome(0.7)


def test_epochs_are_counted_as_they_pass(storage: Any) -> None:
    queue = TrialQueue(storage, make(ADAMW, budget=1, seeds=1))
    assert queue.progress()[1] == 0
    taken = queue.take()
    assert taken is not None
    queue.record_epoch(taken, 0, EPOCH)
    queue.record_epoch(taken, 1, EPOCH)
    assert queue.progress()[1] == 2
    queue.finish(taken, diverged(), "here")
    assert queue.progress()[1] == 3
    run(queue)
    assert queue.progress()[1] == queue.trial_count() * 3


def test_results_are_what_was_put_in_and_survive_json(storage: Any) -> None:
    study = make(ADAMW, ADAMCM, DOUBLED)
    save_study(storage, study)
    queue = TrialQueue(storage, study)
    ends = [outcome(0.7), diverged(), "RuntimeError: no"]
    run(queue, numbered(study, "adamw", ends))
    results = queue.results()
    kept, gone, failed = results.trials_of("adamw", TUNE)
    assert kept.outcome == ends[0]
    assert gone.outcome is not None
    assert gone.outcome.diverged
    assert math.isnan(gone.outcome.final.validation_loss)
    assert (failed.outcome, failed.error) == (None, "RuntimeError: no")
    content = results.to_dict()
    again = from_json(StudyResults, json.loads(json.dumps(content, allow_nan=False)))
    assert again.to_dict() == content
    assert again.trials_of("adamw", TUNE)[0] == kept
    reader = TrialQueue(storage, find_study(storage), plan=False)
    assert reader.results().to_dict() == content


def test_a_study_is_one_of_optunas_whose_trials_say_what_they_are(storage: Any) -> None:
    ranged = Contender(
        "adamcg",
        space={"priority_decay": {"low": 0.7, "high": 0.99, "log": False}},
        defaults={"lr": 1e-3, "priority_decay": 0.7},
    )
    study = make(ADAMW, ADAMCM, ranged, metric=Metric(higher_is_better=False))
    save_study(storage, study)
    run(TrialQueue(storage, study))
    (name,) = optuna.get_all_study_names(storage)
    assert name == study.name
    found = optuna.load_study(study_name=name, storage=storage)
    assert found.direction.name == "MINIMIZE"
    said = [
        tuple(each.user_attrs[name] for name in ("optimizer", "phase", "number"))
        for each in found.trials
    ]
    assert sorted(said) == everything(study)
    for trial in found.trials:
        settings = trial.user_attrs["settings"]
        assert trial.params.items() <= settings.items()
        tuned = trial.user_attrs["phase"] == TUNE
        assert ("priority_decay" in trial.params) == (tuned and "priority_decay" in settings)


def test_a_study_is_found_again(storage: Any) -> None:
    with pytest.raises(ValueError, match="holds no study of steppe compare"):
        find_study(storage)
    optuna.create_study(storage=storage, study_name="somebody else's")
    first, second = make(), make(budget=7)
    save_study(storage, first)
    TrialQueue(storage, first)
    found = find_study(storage)
    assert json.dumps(found.to_dict()) == json.dumps(first.to_dict())
    assert found.name == first.name
    assert [found.key(each) for each in found.contenders] == [
        first.key(each) for each in first.contenders
    ]
    save_study(storage, replace(first, seeds=9))
    assert find_study(storage).seeds == 9
    save_study(storage, second)
    with pytest.raises(ValueError, match=r"several studies: name one with --study: digits-.+, d"):
        find_study(storage)
    assert find_study(storage, second.name).budget == 7
    with pytest.raises(ValueError, match="no study called 'digits': name one with --study"):
        find_study(storage, "digits")


def test_a_study_of_another_version_is_refused(storage: Any) -> None:
    entry = optuna.create_study(storage=storage, study_name="old")
    entry.set_user_attr("steppe", {"setup": {"task": "digits"}, "colour": "red"})
    with pytest.raises(ValueError, match="old was planned with another version of steppe"):
        find_study(storage)


def test_who_gave_a_trial_back_has_not_failed_in_it(storage: Any) -> None:
    """A signal may come between what came of a trial and its state: ``released`` wins."""
    queue = TrialQueue(storage, make(ADAMW, budget=1))
    taken = queue.take()
    assert taken is not None
    storage.set_trial_user_attr(taken.trial_id, "error", "AttributeError: half a module")
    queue.release(taken)
    again = queue.take()
    assert again is not None
    assert key(again) == key(taken)


def test_the_settings_of_a_test_run_are_kept_when_it_is_taken(storage: Any) -> None:
    queue = TrialQueue(storage, make(ADAMW, budget=1))
    taken = queue.take()
    assert taken is not None
    queue.finish(taken, outcome(), "here")
    test = queue.take()
    assert test is not None
    assert storage.get_trial(test.trial_id).user_attrs["settings"] == ADAMW.defaults
