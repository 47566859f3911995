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
from steppe.compare.execution.study_storage import open_storage
from steppe.compare.execution.trial_queue import (
    TUNING_SEED,
    Assignment,
    TrialQueue,
    record,
    recorded,
)
from steppe.compare.planning.study import Study
from steppe.compare.records.results import (
    TEST,
    TUNE,
    Contender,
    Epoch,
    Metric,
    Outcome,
    study_from_dict,
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
    ledger: TrialQueue, come_of: Callable[[Assignment], Outcome | str] = lambda taken: outcome()
) -> list[Assignment]:
    """Take all that can be taken, and end it; what comes of it as a string is an error."""
    found = []
    while (taken := ledger.take()) is not None:
        came = come_of(taken)
        if isinstance(came, str):
            assert ledger.fail(taken, came, "here")
        else:
            assert ledger.finish(taken, came, "here")
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
    ledger = TrialQueue(storage, study)
    assert ledger.trials() == 2 * (3 + 2)
    assert not ledger.ended()
    taken = run(ledger)
    assert sorted(map(key, taken)) == everything(study)
    assert ledger.ended()
    # Tuning comes first, and everybody's first trial before anybody's second.
    assert [key(each)[1:] for each in taken] == [
        *((TUNE, number) for number in (0, 0, 1, 1, 2, 2)),
        *((TEST, number) for number in (0, 0, 1, 1)),
    ]
    assert {each.seed for each in taken if each.phase == TUNE} == {TUNING_SEED}
    assert [each.seed for each in taken if each.phase == TEST] == [0, 0, 1, 1]
    for again in (ledger, TrialQueue(storage, study)):
        again.complement()
        assert again.take() is None
    assert ledger.results().complete


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
    assert not one.ended()
    one.finish(first, outcome(), "here")
    assert [key(each)[:2] for each in run(other)] == [("adamw", TEST)] * 2
    assert one.ended()


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
    ledger = TrialQueue(storage, study)
    taken = run(ledger, numbered(study, "adamw", [outcome(*each) for each in ends]))
    wanted = study.points(ADAMW)[best]
    assert [each.settings for each in taken if each.phase == TEST] == [wanted] * 2
    assert ledger.results().chosen("adamw") == wanted


def test_what_diverged_or_failed_never_wins(storage: Any) -> None:
    study = make(ADAMW)
    # The one that diverged later had the best score of all on the way.
    late = replace(outcome(0.99), diverged=True)
    ledger = TrialQueue(storage, study)
    taken = run(ledger, numbered(study, "adamw", [late, "RuntimeError: no", outcome(0.1)]))
    assert taken[-1].settings == study.points(ADAMW)[2]
    errors = [trial.error for trial in ledger.results().of("adamw", TUNE)]
    assert errors == ["", "RuntimeError: no", ""]


@pytest.mark.parametrize("ends", [[diverged()] * 3, [diverged(), "no", "no"]])
def test_where_nothing_came_of_the_tuning_the_tests_say_so(storage: Any, ends: list[Any]) -> None:
    study = make(ADAMW, ADAMCM)
    ledger = TrialQueue(storage, study)
    taken = run(ledger, numbered(study, "adamw", ends))
    assert ("adamw", TEST) not in {key(each)[:2] for each in taken}
    assert ledger.ended()
    tests = ledger.results().of("adamw", TEST)
    assert [trial.error for trial in tests] == ["no tuning trial ended with a finite loss"] * 2
    assert [trial.outcome for trial in tests] == [None] * 2
    assert len([each for each in taken if each.contender == ADAMCM]) == 5


def test_a_control_follows_its_leader_at_twice_the_lr(storage: Any) -> None:
    study = make(DOUBLED, ADAMCM)
    ledger = TrialQueue(storage, study)
    taken = run(ledger, numbered(study, "adamcm", [outcome(0.3), outcome(0.2), outcome(0.7)]))
    assert sorted(map(key, taken)) == everything(study)
    best = study.points(ADAMCM)[2]
    following = [each.settings for each in taken if each.contender == DOUBLED]
    # Adam has no buffer, hence no priority_decay.
    assert following == [{"lr": 2 * best["lr"]}] * 2
    assert ledger.results().chosen("adam+2lr") == {"lr": 2 * best["lr"]}


def test_a_control_waits_for_its_leader(where: str, opened: Open) -> None:
    study = make(DOUBLED, ADAMCM, budget=1)
    one, other = (TrialQueue(opened(where), study) for _ in range(2))
    leading = one.take()
    assert leading is not None
    assert other.take() is None
    one.fail(leading, "no", "here")
    assert other.take() is None
    assert {trial.error for trial in one.results().of("adam+2lr", TEST)} == {
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
    ledger = TrialQueue(storage, more)
    assert sorted(map(key, run(ledger))) == sorted(set(everything(more)) - set(everything(before)))
    assert ledger.results().complete
    fewer = TrialQueue(storage, replace(before, seeds=1))
    assert fewer.take() is None
    assert fewer.ended()
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
        fast.complement()
        taken.append(fast.take())
        add(part, trial)

    monkeypatch.setattr(optuna.Study, "add_trial", add_late)
    slow.complement()
    states = [each.state.name for part in slow._parts.values() for each in part.trials]
    assert len(states) > slow.trials()
    for ledger in (slow, fast) * 4:
        taken.append(ledger.take())
    # Its tuning is being run by both, and nobody begins any of it again.
    assert [each and key(each) for each in taken] == [
        *((name, TUNE, n) for n in range(3) for name in ("adamw", "adamcm")), None, None, None
    ]  # fmt: skip
    for each in taken:
        assert each is None or fast.finish(each, outcome(), "here")
    assert len(run(slow)) == 4
    assert slow.ended()
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
    ledger = TrialQueue(opened(where, create=True), study, plan=False)
    together(plan_at_once, 3, where, study)
    done = together(work_off, 3, where, study)
    assert sorted(chain.from_iterable(done)) == everything(study)
    results = ledger.results()
    assert results.complete
    assert sorted((t.optimizer, t.phase, t.number) for t in results.trials) == everything(study)


def test_a_lost_trial_is_run_again_at_most_three_times(storage: Any) -> None:
    study = make(ADAMW, budget=1, seeds=1)
    ledger = TrialQueue(storage, study)
    for _ in range(3):
        assert not ledger.ended()
        taken = ledger.take()
        assert taken is not None
        assert key(taken) == ("adamw", TUNE, 0)
        ledger.complement()
        assert ledger.take() is None
        forget(storage, taken.trial_id)
        ledger.complement()
    # Nothing is left to choose from.
    assert ledger.take() is None
    assert ledger.ended()
    assert [(trial.phase, trial.error) for trial in ledger.results().trials] == [
        (TUNE, "its worker was lost 3 times"),
        (TEST, "no tuning trial ended with a finite loss"),
    ]


def test_a_lost_test_run_says_what_it_ran_with(storage: Any) -> None:
    study = make(ADAMW)
    ledger = TrialQueue(storage, study)
    lost = 0
    while (taken := ledger.take()) is not None:
        if key(taken)[1:] == (TEST, 0) and (lost := lost + 1):
            forget(storage, taken.trial_id)
            ledger.complement()
        else:
            ledger.finish(taken, outcome(), "here")
    assert lost == 3
    tests = ledger.results().of("adamw", TEST)
    assert [trial.error for trial in tests] == ["its worker was lost 3 times", ""]
    assert [trial.settings for trial in tests] == [ADAMW.defaults] * 2


def test_what_was_given_back_is_there_at_once_and_does_not_count(storage: Any) -> None:
    ledger = TrialQueue(storage, make(ADAMW, budget=1))
    for _ in range(5):
        taken = ledger.take()
        assert taken is not None
        assert key(taken) == ("adamw", TUNE, 0)
        ledger.release(taken)
    assert len(run(ledger)) == 3
    assert ledger.results().complete


def test_who_was_thought_dead_cannot_overwrite(where: str, opened: Open) -> None:
    study = make(ADAMW, budget=1)
    sleeper, other = (TrialQueue(opened(where), study) for _ in range(2))
    slept = sleeper.take()
    assert slept is not None
    assert sleeper.note(slept, 0, EPOCH)
    forget(sleeper.storage, slept.trial_id)
    other.complement()
    again = other.take()
    assert again is not None
    assert key(again) == key(slept)
    for _ in range(2):
        assert not sleeper.note(slept, 1, EPOCH)
        assert not sleeper.finish(slept, outcome(0.1), "asleep")
        assert not sleeper.fail(slept, "dreamt", "asleep")
        sleeper.release(slept)
        if not again:
            break
        assert other.note(again, 0, EPOCH)
        assert other.finish(again, outcome(0.8), "awake")
        again = None
    (found,) = other.results().of("adamw", TUNE)
    assert found.outcome == outcome(0.8)
    assert found.where == "awake"
    assert other.take() is not None


def test_a_result_whose_end_is_missing_is_none(
    storage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill between what came of a trial and its state: it is as if it had not been."""
    ledger = TrialQueue(storage, make(ADAMW, budget=1))
    taken = ledger.take()
    assert taken is not None

    def die(*_: Any) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(storage, "set_trial_state_values", die)
        with pytest.raises(KeyboardInterrupt):
            ledger.finish(taken, outcome(0.9), "here")
    assert ledger.results().trials == ()
    forget(storage, taken.trial_id)
    ledger.complement()
    run(ledger, lambda taken: outcome(0.4))
    assert ledger.results().of("adamw", TUNE)[0].outcome == outcome(0.4)


def test_a_result_waits_for_a_storage_and_a_note_does_not(
    storage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = TrialQueue(storage, make(ADAMW, budget=1))
    taken = ledger.take()
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
    assert [ledger.note(taken, number, EPOCH) for number in range(3)] == [True] * 3
    assert list(storage.get_trial(taken.trial_id).intermediate_values) == [2]
    assert ledger.finish(taken, outcome(0.7), "here")
    assert max(flaky.values()) < 0
    assert ledger.results().of("adamw", TUNE)[0].outcome == outcome(0.7)


def test_epochs_are_counted_as_they_pass(storage: Any) -> None:
    ledger = TrialQueue(storage, make(ADAMW, budget=1, seeds=1))
    assert ledger.progress()[1] == 0
    taken = ledger.take()
    assert taken is not None
    ledger.note(taken, 0, EPOCH)
    ledger.note(taken, 1, EPOCH)
    assert ledger.progress()[1] == 2
    ledger.finish(taken, diverged(), "here")
    assert ledger.progress()[1] == 3
    run(ledger)
    assert ledger.progress()[1] == ledger.trials() * 3


def test_results_are_what_was_put_in_and_survive_json(storage: Any) -> None:
    study = make(ADAMW, ADAMCM, DOUBLED)
    record(storage, study)
    ledger = TrialQueue(storage, study)
    ends = [outcome(0.7), diverged(), "RuntimeError: no"]
    run(ledger, numbered(study, "adamw", ends))
    results = ledger.results()
    kept, gone, failed = results.of("adamw", TUNE)
    assert kept.outcome == ends[0]
    assert gone.outcome is not None
    assert gone.outcome.diverged
    assert math.isnan(gone.outcome.final.validation_loss)
    assert (failed.outcome, failed.error) == (None, "RuntimeError: no")
    content = results.to_dict()
    again = study_from_dict(json.loads(json.dumps(content, allow_nan=False)))
    assert again.to_dict() == content
    assert again.of("adamw", TUNE)[0] == kept
    reader = TrialQueue(storage, recorded(storage), plan=False)
    assert reader.results().to_dict() == content


def test_a_study_is_found_again(storage: Any) -> None:
    with pytest.raises(ValueError, match="holds no study of steppe compare"):
        recorded(storage)
    optuna.create_study(storage=storage, study_name="somebody else's")
    first, second = make(), make(budget=7)
    record(storage, first)
    TrialQueue(storage, first)
    found = recorded(storage)
    assert json.dumps(found.to_dict()) == json.dumps(first.to_dict())
    assert found.name == first.name
    assert [found.key(each) for each in found.contenders] == [
        first.key(each) for each in first.contenders
    ]
    record(storage, replace(first, seeds=9))
    assert recorded(storage).seeds == 9
    record(storage, second)
    with pytest.raises(ValueError, match=r"several studies: name one with --study: digits-.+, d"):
        recorded(storage)
    assert recorded(storage, second.name).budget == 7
    with pytest.raises(ValueError, match="no study called 'digits': name one with --study"):
        recorded(storage, "digits")


def test_a_study_of_another_version_is_refused(storage: Any) -> None:
    entry = optuna.create_study(storage=storage, study_name="old")
    entry.set_user_attr("steppe", {"setup": {"task": "digits"}, "colour": "red"})
    with pytest.raises(ValueError, match="old was planned with another version of steppe"):
        recorded(storage)
