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
from steppe.compare.execution.optuna_trials import trial_value
from steppe.compare.execution.study_registry import find_study, save_study
from steppe.compare.execution.study_storage import open_storage
from steppe.compare.execution.trial_queue import Assignment, TrialQueue
from steppe.compare.planning.search_spaces import trial_seed
from steppe.compare.planning.study import PlannedStudy
from steppe.compare.records.json_format import from_json
from steppe.compare.records.results import (
    DEFAULT,
    PHASES,
    POOL,
    RECOMMENDED,
    ContenderRecord,
    Epoch,
    MetricDescription,
    Outcome,
    StudyPlan,
    StudyResults,
)
from steppe.compare.records.summary import summarise
from steppe.compare.training.run import RunSettings

pytestmark = pytest.mark.thorough

__all__ = ["opened", "postgres"]

LR = {"low": 1e-4, "high": 1e-2, "log": True}
ADAMW = ContenderRecord("adamw", space={"lr": LR}, defaults={"lr": 1e-3, "weight_decay": 0.0})
ADAMCM = ContenderRecord(
    "adamcm",
    space={"lr": LR, "priority_decay": {"choices": (0.7, 0.9)}},
    defaults={"lr": 1e-3, "priority_decay": 0.7},
)
# Nothing of it is searched: the pool is all there is.
FIXED = ContenderRecord("sgd", defaults={"lr": 0.1})
LONG = ContenderRecord("adamw+2epochs", space={"lr": LR}, defaults={"lr": 1e-3}, epochs=2)
EPOCH = Epoch(2.0, 2.2, 0.1, 1e-3, 1.0)


def make(*contenders: ContenderRecord, **changes: Any) -> PlannedStudy:
    fields: dict[str, Any] = {
        "setup": RunSettings(
            "digits", "mlp", None, "abc", epochs=3, steps_per_epoch=4, batch_size=32
        ),
        "plan": StudyPlan(budget=1, trials=3, repeats=2),
        "contenders": contenders or (ADAMW, ADAMCM),
        "metric": MetricDescription(),
        "facts": {"train_samples": 1_006},
        "command": "steppe compare digits",
        "versions": {"torch": "2", "steppe": "1", "source": "f00"},
    }
    return PlannedStudy(**{**fields, **changes})


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


def everything(study: PlannedStudy) -> list[tuple[str, str, int]]:
    return sorted(
        (contender.name, phase, number)
        for contender in study.contenders
        for phase in PHASES
        for number in range(study.plan.planned(contender, phase))
    )


def short(**changes: Any) -> StudyPlan:
    """Plan a run of each phase, besides the pool of three trials."""
    return replace(StudyPlan(budget=1, trials=3, repeats=1), **changes)


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


def test_who_is_too_late_for_a_trial_takes_the_next(
    storage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_study(storage, make())
    slow, fast = TrialQueue(storage, make()), TrialQueue(storage, make())
    claim = slow._trials.claim
    faster = iter([True, True])

    def late(trial: int) -> bool:
        if next(faster, False):
            taken.append(fast.take())
        return claim(trial)

    taken: list[Assignment | None] = []
    monkeypatch.setattr(slow._trials, "claim", late)
    taken.append(slow.take())
    assert [each and key(each) for each in taken] == [
        ("adamw", POOL, 0), ("adamcm", POOL, 0), ("adamw", POOL, 1)
    ]  # fmt: skip


def numbered(study: PlannedStudy, name: str, values: Sequence[Any]) -> Callable[[Assignment], Any]:
    """Let these come of a contender's pool, and the usual of all others."""

    def come_of(taken: Assignment) -> Any:
        mine = taken.contender.name == name and taken.phase == POOL
        return values[taken.number] if mine else outcome(0.5)

    return come_of


def test_every_trial_is_run_once_in_its_turn(storage: Any) -> None:
    study = make()
    queue = TrialQueue(storage, study)
    assert queue.trial_count() == 2 * (3 + 2 + 2)
    assert not queue.all_ended()
    taken = run(queue)
    assert sorted(map(key, taken)) == everything(study)
    assert queue.all_ended()
    # The pool comes first, and everybody's first trial before anybody's second.
    assert [key(each) for each in taken] == [
        (name, phase, number)
        for phase, numbers in ((POOL, 3), (DEFAULT, 2), (RECOMMENDED, 2))
        for number in range(numbers)
        for name in ("adamw", "adamcm")
    ]
    for again in (queue, TrialQueue(storage, study)):
        again.add_missing_trials()
        assert again.take() is None
    assert queue.results().complete


def test_a_trial_has_its_own_seed_and_settings_the_same_for_everybody(storage: Any) -> None:
    study = make(ADAMW, ADAMCM, LONG, FIXED, plan=short(study_seed=5))
    taken = run(TrialQueue(storage, study))
    seeds: dict[tuple[str, int], set[int]] = {}
    for each in taken:
        seeds.setdefault((each.phase, each.number), set()).add(each.seed)
        if each.phase != RECOMMENDED:
            assert each.settings == study.settings(each.contender, each.phase, each.number)
        if each.phase == DEFAULT or each.contender == FIXED:
            assert each.settings == each.contender.defaults
    assert seeds == {(phase, number): {trial_seed(5, phase, number)} for phase, number in seeds}
    pool = [each for each in taken if each.phase == POOL]
    assert len({each.seed for each in pool}) == 3
    rates = [
        {each.settings["lr"] for each in pool if each.number == n and each.contender != FIXED}
        for n in range(3)
    ]
    assert [len(each) for each in rates] == [1, 1, 1]
    assert len(set.union(*rates)) == 3


def test_where_nothing_is_searched_the_pool_is_all(storage: Any) -> None:
    taken = run(TrialQueue(storage, make(FIXED)))
    assert [(each.phase, each.settings) for each in taken] == [(POOL, FIXED.defaults)] * 3


def test_recommended_runs_wait_for_their_contenders_pool(where: str, opened: Open) -> None:
    study = make(plan=short())
    one, other = (TrialQueue(opened(where), study) for _ in range(2))
    pool = [one.take() for _ in range(6)]
    for each in pool[:4] + pool[5:]:
        assert each is not None
        assert one.finish(each, outcome(), "here")
    assert pool[4] is not None
    assert key(pool[4]) == ("adamw", POOL, 2)
    assert [key(each)[:2] for each in run(other)] == [
        ("adamw", DEFAULT),
        ("adamcm", DEFAULT),
        ("adamcm", RECOMMENDED),
    ]
    assert not other.all_ended()
    one.finish(pool[4], outcome(), "here")
    assert [key(each)[:2] for each in run(other)] == [("adamw", RECOMMENDED)]
    assert one.all_ended()


@pytest.mark.parametrize(
    ("higher_is_better", "ends", "best"),
    [
        (True, [(0.8, 0.1), (0.9, 0.5), (0.7, 0.2)], 1),
        (True, [(0.9, 0.5), (0.9, 0.3), (0.9, 0.4)], 1),
        (True, [(0.8, 0.3), (0.9, 0.3), (0.9, 0.3)], 1),
        (True, [(0.9, 0.3), (0.9, 0.3), (0.9, 0.3)], 0),
        (False, [(0.8, 0.1), (0.9, 0.5), (0.7, 0.2)], 2),
        (False, [(0.8, 0.4), (0.8, 0.3), (0.9, 0.2)], 1),
    ],
)
def test_the_best_is_by_validation_score_and_among_equals_by_loss(
    storage: Any, higher_is_better: bool, ends: list[tuple[float, float]], best: int
) -> None:
    study = make(ADAMW, metric=MetricDescription(higher_is_better=higher_is_better))
    queue = TrialQueue(storage, study)
    taken = run(queue, numbered(study, "adamw", [outcome(*each) for each in ends]))
    wanted = study.settings(ADAMW, POOL, best)
    assert [each.settings for each in taken if each.phase == RECOMMENDED] == [wanted] * 2
    (row,) = summarise(queue.results())
    assert row.recommended == wanted


def test_what_diverged_or_failed_never_wins(storage: Any) -> None:
    study = make(ADAMW)
    # The one that diverged later had the best score of all on the way.
    late = replace(outcome(0.99), diverged=True)
    queue = TrialQueue(storage, study)
    taken = run(queue, numbered(study, "adamw", [late, "RuntimeError: no", outcome(0.1)]))
    assert taken[-1].phase == RECOMMENDED
    assert taken[-1].settings == study.settings(ADAMW, POOL, 2)
    errors = [trial.error for trial in queue.results().trials_of("adamw", POOL)]
    assert errors == ["", "RuntimeError: no", ""]


@pytest.mark.parametrize("ends", [[diverged()] * 3, [diverged(), "no", "no"]])
def test_where_nothing_came_of_the_pool_nothing_is_recommended(
    storage: Any, ends: list[Any]
) -> None:
    study = make(ADAMW, ADAMCM)
    queue = TrialQueue(storage, study)
    taken = run(queue, numbered(study, "adamw", ends))
    assert ("adamw", RECOMMENDED) not in {key(each)[:2] for each in taken}
    assert queue.all_ended()
    failed = queue.results().trials_of("adamw", RECOMMENDED)
    assert [trial.error for trial in failed] == ["no trial ended with a finite loss"] * 2
    assert [(trial.outcome, trial.settings) for trial in failed] == [(None, {})] * 2
    assert len([each for each in taken if each.contender == ADAMCM]) == 7


def test_more_trials_and_contenders_add_only_what_is_missing(storage: Any) -> None:
    before = make(ADAMW)
    run(TrialQueue(storage, before))
    more = replace(before, plan=StudyPlan(2, 6, repeats=2), contenders=(ADAMW, ADAMCM))
    assert more.name == before.name
    queue = TrialQueue(storage, more)
    # The best of six trials may be another than that of three.
    recommended = {("adamw", RECOMMENDED, number) for number in range(2)}
    missing = set(everything(more)) - set(everything(before)) | recommended
    assert sorted(map(key, run(queue))) == sorted(missing)
    assert queue.results().complete
    fewer = TrialQueue(storage, before)
    assert fewer.take() is None
    assert fewer.all_ended()
    assert len(fewer.results().trials) == 3 + 2 + 2


def test_what_is_recommended_is_the_best_of_the_whole_pool(storage: Any) -> None:
    """Also where a smaller pool has recommended something else before."""
    small = make(ADAMW)
    scores = [0.7, 0.8, 0.6, 0.5, 0.9, 0.1]
    ends = numbered(small, "adamw", [outcome(each) for each in scores])
    first = TrialQueue(storage, small)
    run(first, ends)
    large = TrialQueue(storage, replace(small, plan=StudyPlan(2, 6, repeats=2)))
    run(large, ends)
    for queue, best in ((first, 1), (large, 4)):
        runs = queue.results().trials_of("adamw", RECOMMENDED)
        assert [each.settings for each in runs] == [small.settings(ADAMW, POOL, best)] * 2


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
    for queue in (slow, fast) * 6:
        taken.append(queue.take())
    # All but the last phase is being run by both, and nobody begins any of it again.
    names = ("adamw", "adamcm")
    assert [each and key(each) for each in taken] == [
        *((name, POOL, n) for n in range(3) for name in names),
        *((name, DEFAULT, n) for n in range(2) for name in names),
        *[None] * 3,
    ]
    for each in taken:
        assert each is None or fast.finish(each, outcome(), "here")
    assert len(run(slow)) == 4
    assert slow.all_ended()
    assert fast.results().complete


@pytest.mark.parametrize("kind", KINDS)
def test_a_crowd_plans_and_works_off_each_trial_once(
    kind: str, request: pytest.FixtureRequest, opened: Open
) -> None:
    study = make(ADAMW, ADAMCM, FIXED, plan=short())
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
    queue = TrialQueue(storage, make(FIXED))
    taken, *others = (queue.take() for _ in range(3))
    for each in others:
        assert each is not None
        queue.finish(each, outcome(), "here")
    # The third attempt gets to an epoch, where another ten end as well.
    for attempt in range(12):
        assert not queue.all_ended()
        assert taken is not None
        assert key(taken) == ("sgd", POOL, 0)
        if attempt >= 2:
            queue.record_epoch(taken, 1, EPOCH)
        queue.add_missing_trials()
        assert queue.take() is None
        forget(storage, taken.trial_id)
        queue.add_missing_trials()
        taken = queue.take()
    assert taken is None
    assert queue.all_ended()
    errors = [trial.error for trial in queue.results().trials]
    assert errors == ["its worker was lost 10 times", "", ""]


def test_a_lost_run_at_recommended_settings_says_what_it_ran_with(storage: Any) -> None:
    study = make(ADAMW)
    queue = TrialQueue(storage, study)
    lost = 0
    while (taken := queue.take()) is not None:
        if key(taken)[1:] == (RECOMMENDED, 0) and (lost := lost + 1):
            forget(storage, taken.trial_id)
            queue.add_missing_trials()
        else:
            queue.finish(taken, outcome(), "here")
    assert lost == 10
    runs = queue.results().trials_of("adamw", RECOMMENDED)
    assert [trial.error for trial in runs] == ["its worker was lost 10 times", ""]
    assert [trial.settings for trial in runs] == [study.settings(ADAMW, POOL, 0)] * 2


def test_what_was_given_back_is_there_at_once_and_does_not_count(storage: Any) -> None:
    queue = TrialQueue(storage, make(ADAMW))
    for _ in range(5):
        taken = queue.take()
        assert taken is not None
        assert key(taken) == ("adamw", POOL, 0)
        queue.release(taken)
    assert len(run(queue)) == 7
    assert queue.results().complete


def test_who_was_thought_dead_cannot_overwrite(where: str, opened: Open) -> None:
    study = make(ADAMW)
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
    (found,) = other.results().trials_of("adamw", POOL)
    assert found.outcome == outcome(0.8)
    assert found.where == "awake"
    assert other.take() is not None


def test_a_result_whose_end_is_missing_is_none(
    storage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill between what came of a trial and its state: it is as if it had not been."""
    queue = TrialQueue(storage, make(ADAMW))
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
    assert queue.results().trials_of("adamw", POOL)[0].outcome == outcome(0.4)


def test_a_result_waits_for_a_storage_and_a_note_does_not(
    storage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = TrialQueue(storage, make(ADAMW))
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
    assert queue.results().trials_of("adamw", POOL)[0].outcome == outcome(0.7)


def test_epochs_are_counted_as_they_pass(storage: Any) -> None:
    """Three of each run, six of one that is twice as long."""
    queue = TrialQueue(storage, make(LONG, ADAMW, plan=short()))
    assert queue.progress() == (0, 0)
    assert queue.epoch_count() == 5 * 6 + 5 * 3
    taken = queue.take()
    assert taken is not None
    queue.record_epoch(taken, 0, EPOCH)
    queue.record_epoch(taken, 1, EPOCH)
    assert queue.progress() == (0, 2)
    queue.finish(taken, diverged(), "here")
    assert queue.progress() == (1, 6)
    run(queue)
    assert queue.progress() == (queue.trial_count(), queue.epoch_count())


def test_results_are_what_was_put_in_and_survive_json(storage: Any) -> None:
    study = make(ADAMW, ADAMCM, FIXED)
    save_study(storage, study)
    queue = TrialQueue(storage, study)
    ends = [outcome(0.7), diverged(), "RuntimeError: no"]
    run(queue, numbered(study, "adamw", ends))
    results = queue.results()
    kept, gone, failed = results.trials_of("adamw", POOL)
    assert kept.outcome == ends[0]
    assert gone.outcome is not None
    assert gone.outcome.diverged
    assert math.isnan(gone.outcome.final.validation_loss)
    assert (failed.outcome, failed.error) == (None, "RuntimeError: no")
    content = results.to_dict()
    again = from_json(StudyResults, json.loads(json.dumps(content, allow_nan=False)))
    assert again.to_dict() == content
    assert again.trials_of("adamw", POOL)[0] == kept
    reader = TrialQueue(storage, find_study(storage), plan=False)
    assert reader.results().to_dict() == content


def test_a_study_is_one_of_optunas_whose_trials_say_what_they_are(storage: Any) -> None:
    ranged = ContenderRecord(
        "adamcg",
        space={"priority_decay": {"low": 0.7, "high": 0.99, "log": False}},
        defaults={"lr": 1e-3, "priority_decay": 0.7},
    )
    study = make(ADAMW, ADAMCM, ranged, metric=MetricDescription(higher_is_better=False))
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
        known = trial.user_attrs["phase"] != RECOMMENDED
        assert ("priority_decay" in trial.params) == (known and "priority_decay" in settings)


def test_a_study_is_found_again(storage: Any) -> None:
    with pytest.raises(ValueError, match="holds no study of steppe compare"):
        find_study(storage)
    optuna.create_study(storage=storage, study_name="somebody else's")
    first, second = make(), make(plan=StudyPlan(1, 7, study_seed=1))
    save_study(storage, first)
    TrialQueue(storage, first)
    found = find_study(storage)
    assert json.dumps(found.to_dict()) == json.dumps(first.to_dict())
    assert found.name == first.name
    assert [found.key(each) for each in found.contenders] == [
        first.key(each) for each in first.contenders
    ]
    save_study(storage, replace(first, plan=StudyPlan(1, 9)))
    assert find_study(storage).plan == StudyPlan(1, 9)
    save_study(storage, second)
    with pytest.raises(
        ValueError, match=r"several studies: name one by study= or --study: digits-.+, d"
    ):
        find_study(storage)
    assert find_study(storage, second.name).plan == second.plan
    with pytest.raises(ValueError, match="no study called 'digits': name one by study= or --study"):
        find_study(storage, "digits")


def test_a_study_of_another_version_is_refused(storage: Any) -> None:
    entry = optuna.create_study(storage=storage, study_name="old")
    entry.set_user_attr("steppe", {"setup": {"task": "digits"}, "colour": "red"})
    with pytest.raises(ValueError, match="old was planned with another version of steppe"):
        find_study(storage)


def test_who_gave_a_trial_back_has_not_failed_in_it(storage: Any) -> None:
    """A signal may come between what came of a trial and its state: ``released`` wins."""
    queue = TrialQueue(storage, make(ADAMW))
    taken = queue.take()
    assert taken is not None
    storage.set_trial_user_attr(taken.trial_id, "error", "AttributeError: half a module")
    queue.release(taken)
    again = queue.take()
    assert again is not None
    assert key(again) == key(taken)


def test_recommended_settings_are_kept_when_a_run_is_taken(storage: Any) -> None:
    study = make(ADAMW, plan=short())
    queue = TrialQueue(storage, study)
    while (taken := queue.take()) is not None and taken.phase != RECOMMENDED:
        queue.finish(taken, outcome(), "here")
    assert taken is not None
    kept = storage.get_trial(taken.trial_id).user_attrs["settings"]
    assert kept == study.settings(ADAMW, POOL, 0)


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_the_value_of_a_trial_is_no_test_result(storage: Any, higher_is_better: bool) -> None:
    """Optuna's dashboard shows it while the study runs."""
    metric = MetricDescription(higher_is_better=higher_is_better)
    came = outcome(0.7)
    tested = replace(came, final=replace(came.final, test_loss=0.123, test_score=0.456))
    worst = -math.inf if higher_is_better else math.inf
    assert trial_value(tested, metric) == trial_value(came, metric) == 0.7
    assert trial_value(replace(tested, diverged=True), metric) == worst
    study = make(FIXED, metric=metric)
    queue = TrialQueue(storage, study)
    run(queue, numbered(study, "sgd", [tested, diverged(), "RuntimeError: no"]))
    found = queue._trials._optuna_study.get_trials()
    assert [each.value for each in found] == [0.7, worst, None]
    for each in found:
        assert not {0.123, 0.456} & {*each.params.values(), *each.intermediate_values.values()}


def test_a_plan_that_was_changed_after_its_results_were_seen_is_remembered(
    storage: Any,
) -> None:
    first = make(ADAMW, FIXED, created="2026-01-01")
    assert save_study(storage, first) == first
    run(TrialQueue(storage, first))
    # Once all trials of the first plan have ended, the second has seen them; nobody has seen
    # those of the second when the third is made.
    second = replace(first, plan=StudyPlan(2, 6, repeats=2), created="2026-01-02")
    third = replace(first, plan=StudyPlan(2, 9, "loss", repeats=2), created="2026-01-03")
    for study in (second, third):
        kept = save_study(storage, study)
        assert kept == find_study(storage)
        assert (kept.plan, kept.earlier_plans) == (study.plan, (first.plan,))
        assert kept.created == "2026-01-01"
    assert TrialQueue(storage, third).results().earlier_plans == ()
    run(TrialQueue(storage, third))
    assert save_study(storage, second).earlier_plans == (first.plan, third.plan)


def test_a_plan_whose_trials_have_not_all_ended_is_forgotten(storage: Any) -> None:
    study = make(FIXED)
    save_study(storage, study)
    queue = TrialQueue(storage, study)
    for _ in range(2):
        taken = queue.take()
        assert taken is not None
        queue.finish(taken, outcome(), "here")
    assert save_study(storage, replace(study, plan=StudyPlan(2, 6))).earlier_plans == ()
