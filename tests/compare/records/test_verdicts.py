"""What is read from a pool of trials: verdicts, and what stands behind them."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from helpers import synthetic_studies as studies
from helpers.realistic_study import realistic
from steppe.compare.records.best_of_k import weights
from steppe.compare.records.packed_numbers import unpack
from steppe.compare.records.results import (
    POOL,
    MetricDescription,
    Outcome,
    StudyPlan,
    StudyResults,
    Trial,
)
from steppe.compare.records.summary import (
    best_trial,
    common_train_loss,
    curvature_at,
    recommended_settings,
    repeated_runs,
    summarise,
)
from steppe.compare.records.verdicts import (
    BETTER,
    EXPLORATORY,
    NO_DIFFERENCE,
    PLAN_CHANGED,
    TOO_FEW,
    WORSE,
    Readings,
)
from steppe.compare.report.headline import headline


@pytest.fixture(scope="module")
def study() -> StudyResults:
    return realistic()


@pytest.fixture(scope="module")
def readings(study: StudyResults) -> Readings:
    return Readings(study)


def changed(
    study: StudyResults, which: Callable[[Trial], bool], change: Callable[[Outcome], Outcome]
) -> StudyResults:
    trials = [
        replace(t, outcome=change(t.outcome)) if which(t) and t.outcome else t for t in study.trials
    ]
    return replace(study, trials=tuple(trials))


def ended(study: StudyResults, name: str) -> list[Outcome]:
    found = [trial.outcome for trial in study.trials_of(name, POOL)]
    return [outcome for outcome in found if outcome and not outcome.diverged]


def test_an_unfinished_study_can_not_be_read(study: StudyResults) -> None:
    unfinished = Readings(replace(study, trials=study.trials[:-1]))
    assert unfinished.verdicts == []
    with pytest.raises(ValueError, match="must be those of a finished study"):
        unfinished.expected("adamw", "score", 4)


def test_an_optimizer_that_takes_no_part_is_refused(readings: Readings) -> None:
    with pytest.raises(ValueError, match="sgd"):
        readings.pool("sgd", "score")


def test_verdicts_are_on_the_family_alone(study: StudyResults, readings: Readings) -> None:
    verdicts = {each.optimizer: each for each in readings.verdicts}
    assert list(verdicts) == [each.name for each in study.contenders[1:]]
    assert (verdicts["adamw+sam"].verdict, verdicts["adamcg"].verdict) == (BETTER, WORSE)
    for name, each in verdicts.items():
        assert (each.baseline, each.metric, each.k, each.trials) == ("adamw", "accuracy", 4, 24)
        if name not in study.plan.family:
            assert each.verdict == EXPLORATORY


def test_p_is_corrected_for_the_family(study: StudyResults, readings: Readings) -> None:
    family = study.plan.family
    plain = {name: readings.difference(name, "adamw", "score", 4).p for name in family}
    shown = {v.optimizer: v.p for v in readings.verdicts if v.optimizer in family}
    least = 0.0
    # Holm: the i-th smallest of m is multiplied by m − i + 1, and none is below an earlier one.
    for rank, name in enumerate(sorted(family, key=lambda name: plain[name])):
        least = max(least, min(1.0, (len(family) - rank) * plain[name]))
        assert shown[name] == pytest.approx(least)


def test_lower_is_better_of_a_loss(study: StudyResults) -> None:
    by_loss = Readings(replace(study, plan=replace(study.plan, primary="loss")))
    (found,) = (each for each in by_loss.verdicts if each.optimizer == "adamw+sam")
    assert (found.metric, found.verdict) == ("loss", BETTER)
    assert found.estimate < 0


def test_a_plan_that_was_changed_gets_no_verdicts(study: StudyResults) -> None:
    earlier = (StudyPlan(4, 12, family=study.plan.family),)
    found = Readings(replace(study, earlier_plans=earlier)).verdicts
    assert {v.verdict for v in found if v.optimizer in study.plan.family} == {PLAN_CHANGED}


def test_an_optimizer_against_itself_shows_no_difference(study: StudyResults) -> None:
    twins = [replace(t, optimizer="dualadam") for t in study.trials if t.optimizer == "adamw"]
    others = [t for t in study.trials if t.optimizer != "dualadam"]
    found = Readings(replace(study, trials=(*others, *twins))).verdicts
    (twin,) = (each for each in found if each.optimizer == "dualadam")
    assert (twin.estimate, twin.verdict) == (0.0, NO_DIFFERENCE)


def test_expected_results_are_those_of_the_definition(
    study: StudyResults, readings: Readings
) -> None:
    ours = sorted(
        ended(study, "adamw"),
        key=lambda o: (-o.final.validation_score, o.final.validation_loss),
    )
    lost = 24 - len(ours)
    worst = min(o.final.test_score for c in study.contenders for o in ended(study, c.name))
    scores = [100 * o.final.test_score for o in ours] + [100 * worst] * lost
    for k in readings.budgets:
        wanted = weights(24, k) @ np.array(scores)
        assert readings.expected("adamw", "score", k).mean == pytest.approx(wanted)
    assert readings.budgets == range(1, 9)
    assert readings.count_unsuccessful("adamw") == lost


def test_a_trial_that_diverged_has_no_train_loss_of_its_own(
    study: StudyResults, readings: Readings
) -> None:
    found = readings.expected_mean("adamw", lambda outcome: outcome.final.train_loss)
    losses = [outcome.final.train_loss for outcome in ended(study, "adamw")]
    assert min(losses) <= found <= max(losses)


def test_the_test_samples_share_is_computed_from_the_samples(
    study: StudyResults, readings: Readings
) -> None:
    pool = readings.pool("adamw", "score")
    order = np.lexsort((pool.loss, -pool.score))
    rows = []
    for trial, test in zip(study.trials_of("adamw", POOL), pool.test, strict=True):
        kept = trial.outcome and not trial.outcome.diverged
        rows.append(100 * unpack(trial.outcome.samples.test_scores) if kept else np.full(600, test))
        assert rows[-1].mean() == pytest.approx(test, abs=1e-9)
    total = weights(24, 4) @ np.array(rows)[order]
    wanted = total.std(ddof=1) / math.sqrt(600)
    interval = readings.expected("adamw", "score", 4)
    assert (interval.high - interval.low) / 2 > 2.26 * wanted


def test_a_perplexity_has_the_share_of_its_losses(study: StudyResults) -> None:
    """To first order: exp(mean) has the error exp(mean) · error of the mean."""
    perplexity = MetricDescription("perplexity", "", 1.0, False, of_mean="exp")

    def from_losses(outcome: Outcome) -> Outcome:
        final = outcome.final
        scores = {
            "validation_score": math.exp(final.validation_loss),
            "test_score": math.exp(final.test_loss),
        }
        samples = replace(
            outcome.samples,
            validation_scores=outcome.samples.validation_losses,
            test_scores=outcome.samples.test_losses,
        )
        return replace(outcome, final=replace(final, **scores), samples=samples)

    made = replace(changed(study, lambda trial: True, from_losses), metric=perplexity)
    found = Readings(made).difference("adamw+sam", "adamw", "score", 4)
    # The 600 samples are kept in stretches of two.
    total = np.zeros(300)
    for name, sign in (("adamw+sam", 1), ("adamw", -1)):
        whole = [unpack(o.samples.test_losses) for o in ended(study, name)]
        worst = Readings(made).pool(name, "score").test.max()
        rows = [math.exp(losses.mean()) * losses for losses in whole]
        by_loss = np.argsort([o.final.validation_loss for o in ended(study, name)])
        ranked = [rows[i] for i in by_loss] + [np.full(300, worst)] * (24 - len(rows))
        total += sign * (weights(24, 4) @ np.array(ranked))
    assert found.shares.test == pytest.approx(total.std(ddof=1) / math.sqrt(300))
    assert found.shares.validation > 0


def test_results_without_samples_have_the_share_of_trials_alone(study: StudyResults) -> None:
    bare = changed(study, lambda t: True, lambda o: replace(o, samples=type(o.samples)()))
    found = Readings(bare).difference("adamw+sam", "adamw", "score", 4)
    assert (found.shares.test, found.shares.validation) == (0.0, 0.0)
    assert found.shares.trials > 0


def test_a_test_result_far_below_its_promise_is_counted(study: StudyResults) -> None:
    before = Readings(study).count_broken_promises("adamcm")
    number = next(
        t.number for t in study.trials_of("adamcm", POOL) if t.outcome and not t.outcome.diverged
    )
    broken = changed(
        study,
        lambda t: (t.optimizer, t.phase, t.number) == ("adamcm", POOL, number),
        lambda o: replace(o, final=replace(o.final, test_score=o.final.test_score - 0.3)),
    )
    readings = Readings(broken)
    assert readings.count_broken_promises("adamcm") == before + 1
    assert readings.count_broken_promises("dualadam") == Readings(study).count_broken_promises(
        "dualadam"
    )


def test_recommended_are_the_settings_of_the_best_trial(study: StudyResults) -> None:
    best = best_trial(study.trials_of("adamw", POOL), study.metric)
    assert best is not None
    assert recommended_settings(study, "adamw") == best.settings
    assert len(repeated_runs(study, "adamw")) == 3
    partial = replace(study, trials=study.trials[1:])
    assert recommended_settings(partial, study.trials[0].optimizer) == {}


def test_rows_of_an_unfinished_study_have_no_test_results(study: StudyResults) -> None:
    for row in summarise(replace(study, trials=study.trials[:-1])):
        for interval in (row.score, row.loss, row.untuned, row.recommended_score):
            assert math.isnan(interval.mean)
        assert math.isfinite(row.best_validation)


def test_curvature_is_read_where_all_runs_have_come_through(study: StudyResults) -> None:
    common = common_train_loss(study)
    for contender in study.contenders:
        for outcome in repeated_runs(study, contender.name).values():
            reached = [epoch.probe_loss for epoch in outcome.curve if epoch.probe_loss > 0]
            assert min(reached) <= common
            value = curvature_at(outcome.curve, common, "sharpness")
            ends = [epoch.sharpness for epoch in outcome.curve if epoch.probe_loss > 0]
            assert min(ends) <= value <= max(ends)


@pytest.mark.parametrize(("trials", "can"), [(5, False), (6, True), (12, True)])
def test_too_few_trials_give_no_verdict_however_large_the_difference(
    trials: int, can: bool
) -> None:
    """Of the 2^N label swaps two are as large as what was observed: 2/2^5 is above 5 %."""
    numbers = range(trials)
    better = [studies.outcome(0.9 + 0.001 * number) for number in numbers]
    worse = [studies.outcome(0.1 + 0.001 * number * number) for number in numbers]
    plan = StudyPlan(budget=1, trials=trials, family=("sgd",))
    made = studies.study({"adamw": worse, "sgd": better}, plan=plan)
    (found,) = Readings(made).verdicts
    assert found.p == pytest.approx(2.0 ** (1 - trials), abs=0.01)
    assert found.verdict == (BETTER if can else TOO_FEW)
    said = " ".join(headline(Readings(made), summarise(made)).plan)
    assert ("With 5 trials p is never below 0.062" in said) is not can
    assert ("take at least 6 trials" in said) is not can
