"""A study's records must fit together: plan, pairs of trials, results of samples."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from steppe.compare.records.packed_numbers import pack_bits, pack_floats
from steppe.compare.records.results import (
    DEFAULT,
    POOL,
    RECOMMENDED,
    ContenderRecord,
    Curvature,
    Epoch,
    FinalScores,
    MetricDescription,
    Outcome,
    RunCosts,
    SampleResults,
    StudyPlan,
    StudyResults,
    Trial,
    load,
)
from steppe.compare.records.validation import check_results

SPACE = {"lr": {"low": 1e-4, "high": 1e-1, "log": True}}
SAMPLES = SampleResults(
    pack_bits([1, 0, 1]), pack_floats([0.1, 0.2, 0.3]), pack_bits([1, 1]), pack_floats([0.5, 0.25])
)
Edit = Callable[[StudyResults], StudyResults]


def outcome(epochs: int) -> Outcome:
    curve = tuple(Epoch(1.0, 1.0, 0.5, 0.1, float(number)) for number in range(epochs))
    final = FinalScores(0.1, 0.9, 0.2, 2 / 3, 0.375, 1.0)
    return Outcome(curve, False, final, Curvature(), RunCosts(1.0, 2.0, 8.0), SAMPLES)


@pytest.fixture
def results() -> StudyResults:
    """Make a study of two searched contenders, one of double length, and one without a space."""
    plan = StudyPlan(budget=1, trials=3, family=("adamw+2epochs", "sgd"), repeats=2)
    contenders = (
        ContenderRecord("adamw", space=SPACE, defaults={"lr": 1e-3}),
        ContenderRecord("adamw+2epochs", space=SPACE, defaults={"lr": 1e-3}, epochs=2),
        ContenderRecord("sgd", defaults={"lr": 0.1}),
    )
    first = {POOL: 0, DEFAULT: 100, RECOMMENDED: 200}
    return StudyResults(
        name="toy-00000000",
        task="toy",
        setup={
            "model": "mlp",
            "epochs": 2,
            "steps_per_epoch": 4,
            "train_samples": 9,
            "validation_samples": 3,
            "test_samples": 2,
        },
        plan=plan,
        metric=MetricDescription(),
        versions={"torch": "2"},
        command="steppe compare toy",
        contenders=contenders,
        trials=tuple(
            Trial(each.name, phase, n, first[phase] + n, {"lr": 0.1}, outcome(2 * each.epochs))
            for each in contenders
            for phase in (POOL, DEFAULT, RECOMMENDED)
            for n in range(plan.planned(each, phase))
        ),
    )


def test_what_fits_together_is_taken(results: StudyResults, tmp_path: Path) -> None:
    check_results(results)
    assert results.complete
    assert len(results.trials) == 7 + 7 + 3
    results.save(tmp_path / "study.json")
    found = load(tmp_path / "study.json")
    assert found.to_dict() == results.to_dict()
    # Trials may be missing, and others have no results of samples.
    check_results(replace(results, trials=results.trials[4:]))
    bare = replace(results.trials[0].outcome, samples=SampleResults())
    check_results(with_trial(0, outcome=bare)(results))
    failed = with_trial(0, outcome=None, error="MemoryError")(results)
    check_results(failed)
    diverged = replace(
        results.trials[0].outcome,
        curve=(), diverged=True, final=FinalScores(), samples=SampleResults(),
    )  # fmt: skip
    check_results(with_trial(0, outcome=diverged)(results))


def with_trial(index: int, **changes: Any) -> Edit:
    def edit(results: StudyResults) -> StudyResults:
        trials = list(results.trials)
        trials[index] = replace(trials[index], **changes)
        return replace(results, trials=tuple(trials))

    return edit


def with_plan(**changes: Any) -> Edit:
    return lambda results: replace(results, plan=replace(results.plan, **changes))


def with_contender(index: int, **changes: Any) -> Edit:
    def edit(results: StudyResults) -> StudyResults:
        contenders = list(results.contenders)
        contenders[index] = replace(contenders[index], **changes)
        return replace(results, contenders=tuple(contenders))

    return edit


def with_samples(index: int, **texts: str) -> Edit:
    def edit(results: StudyResults) -> StudyResults:
        found = results.trials[index].outcome
        assert found is not None
        samples = replace(found.samples, **texts)
        return with_trial(index, outcome=replace(found, samples=samples))(results)

    return edit


def with_final(index: int, **numbers: float) -> Edit:
    def edit(results: StudyResults) -> StudyResults:
        found = results.trials[index].outcome
        assert found is not None
        final = replace(found.final, **numbers)
        return with_trial(index, outcome=replace(found, final=final))(results)

    return edit


def with_costs(index: int, **numbers: float) -> Edit:
    def edit(results: StudyResults) -> StudyResults:
        found = results.trials[index].outcome
        assert found is not None
        costs = replace(found.costs, **numbers)
        return with_trial(index, outcome=replace(found, costs=costs))(results)

    return edit


def with_curve(index: int, epochs: int) -> Edit:
    return with_trial(index, outcome=outcome(epochs))


PLANS: Sequence[tuple[Edit, str]] = [
    (with_plan(budget=0), "plan.budget must be at least 1, got 0"),
    (with_plan(budget=2), "plan.trials must be at least 6, 3 times the budget, got 3"),
    (with_plan(trials=10**9), "plan.trials must be at most 10000, got 1000000000"),
    (with_plan(repeats=10**9), "plan.repeats must be at most 10000, got 1000000000"),
    (with_plan(trials=2), "plan.trials must be at least 3, 3 times the budget, got 2"),
    (with_plan(study_seed=-1), "plan.study_seed must be at least 0, got -1"),
    (with_plan(repeats=0), "plan.repeats must be at least 1, got 0"),
    (with_plan(family=("nadam",)), r"plan.family must be one of adamw\+2epochs, sgd, got 'nadam'"),
    (with_plan(family=("adamw",)), r"plan.family must be one of adamw\+2epochs, sgd, got 'adamw'"),
    (with_plan(family=("sgd", "sgd")), "plan.family must be different from each other, got sgd 2"),
    (
        lambda results: replace(results, earlier_plans=(StudyPlan(1, 3), StudyPlan(8, 8))),
        r"earlier_plans\[1\].trials must be at least 24, 3 times the budget, got 8",
    ),
]
TRIALS: Sequence[tuple[Edit, str]] = [
    (with_trial(0, phase="tune"), r"trials\[0\].phase must be one of pool, default, recommended"),
    (with_trial(2, number=3), r"trials\[2\].number must be a number from 0, below 3, got 3"),
    (with_trial(4, number=-1), r"trials\[4\].number must be a number from 0, below 2, got -1"),
    # Nothing of it is searched: it has a pool only.
    (with_trial(14, phase=DEFAULT), r"trials\[14\].number must be a number from 0, below 0"),
    (with_trial(1, number=0, seed=0), "trials must be different from each other, got adamw, pool"),
    (
        with_trial(8, seed=9),
        r"trials\[8\].seed must be 1, as of the other optimizers' pool trial 1, got 9",
    ),
    (
        with_trial(10, seed=9),
        r"trials\[10\].seed must be 100, as of the other optimizers' default trial 0, got 9",
    ),
    (with_trial(0, seed=-1), r"trials\[0\].seed must be at least 0, got -1"),
    (with_trial(0, outcome=None), r"trials\[0\].error must be why there is no outcome"),
    (with_trial(3, settings={"lr": math.nan}), r"trials\[3\].settings.lr must be a number"),
    (with_trial(2, settings={}), r"trials\[2\].settings.lr must be there: it was searched"),
    (with_trial(2, settings={"lr": -1.0}), r"trials\[2\].settings.lr must be > 0, got -1.0"),
    (with_costs(1, gradients=1e307), r"trials\[1\].outcome.costs.gradients must be from 0 to"),
    (with_curve(0, 4), r"trials\[0\].outcome.curve must be of 2 epochs, got 4"),
    (with_curve(7, 2), r"trials\[7\].outcome.curve must be of 4 epochs, got 2"),
    (with_contender(1, epochs=0), r"contenders\[1\].epochs must be at least 1, got 0"),
    (with_contender(0, control_for=("nadam",)), r"contenders\[0\].control_for must be one of"),
]
SIZES: Sequence[tuple[Edit, str]] = [
    (
        with_samples(0, test_scores="bits:3:o"),
        r"trials\[0\].outcome.samples.test_scores must be packed numbers .*, got 'bits:3:o'",
    ),
    (
        with_samples(5, validation_losses="halves:1:"),
        r"trials\[5\].outcome.samples.validation_losses must be packed numbers",
    ),
    (
        with_samples(1, test_scores=pack_bits([1, 0, 1])),
        r"trials\[1\].outcome.samples.test_scores must be of 2 samples, got 3",
    ),
    (
        with_samples(16, validation_losses=pack_floats([0.5])),
        r"trials\[16\].outcome.samples.validation_losses must be of 3 samples, got 1",
    ),
    (
        with_samples(4, test_scores=pack_bits([1, 0])),
        r"trials\[4\].outcome.samples.test_scores must be samples whose mean gives 1, got 0.5",
    ),
    (
        with_final(2, validation_loss=0.5),
        r"trials\[2\].outcome.samples.validation_losses must be samples whose mean gives 0.5",
    ),
    (with_final(2, test_score=5.0), r"trials\[2\].outcome.samples.test_scores must be samples"),
]


@pytest.mark.parametrize(("edit", "message"), [*PLANS, *TRIALS, *SIZES])
def test_what_does_not_fit_is_refused_with_its_field(
    results: StudyResults, edit: Edit, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_results(edit(results))


@pytest.mark.parametrize("name", ["test_score", "validation_score", "test_loss"])
def test_samples_without_their_result_are_refused(results: StudyResults, name: str) -> None:
    with pytest.raises(ValueError, match="must be samples whose mean gives nan"):
        check_results(with_final(0, **{name: math.nan})(results))


def test_two_trials_of_the_pool_must_not_share_a_seed(results: StudyResults) -> None:
    shared = replace(
        results,
        trials=tuple(
            replace(trial, seed=0) if (trial.phase, trial.number) == (POOL, 1) else trial
            for trial in results.trials
        ),
    )
    with pytest.raises(ValueError, match=r"seeds of trials must be different .*, got 0 2 times"):
        check_results(shared)


def test_a_file_that_was_edited_is_refused_with_its_field(
    results: StudyResults, tmp_path: Path
) -> None:
    path = tmp_path / "study.json"
    results.save(path)
    text = path.read_text()
    for old, new, message in (
        ('"trials":3', '"trials":2', "plan.trials must be at least 3"),
        ('"primary":"score"', '"primary":"luck"', "plan.primary"),
        ('"budget":1', '"budget":1.5', "plan.budget must be an integer, got 1.5"),
        ('"phase":"pool"', '"phase":"tune"', r"trials\[0\].phase must be one of pool"),
    ):
        assert old in text
        path.write_text(text.replace(old, new, 1))
        with pytest.raises(ValueError, match=message):
            load(path)
