"""What is said first: findings on the primary reading, the plan, and what it can find."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import pytest

from helpers import synthetic_studies as studies
from helpers.realistic_study import FAMILY, realistic
from helpers.synthetic_studies import diverged, outcome, scores
from steppe.compare.records.best_of_k import Shares
from steppe.compare.records.results import StudyPlan, StudyResults
from steppe.compare.records.summary import summarise
from steppe.compare.records.verdicts import Readings
from steppe.compare.report import headline as module
from steppe.compare.report.headline import Headline, headline


def said(results: StudyResults) -> Headline:
    readings = Readings(results)
    return headline(readings, summarise(results, readings))


@pytest.fixture(scope="module")
def complete() -> StudyResults:
    return realistic()


def test_each_contender_of_the_family_has_a_sentence(complete: StudyResults) -> None:
    found = said(complete).findings
    assert [each.split(":")[0].split(" is ")[0] for each in found[:-1]] == list(FAMILY)
    verdicts = {each.optimizer: each for each in Readings(complete).verdicts}
    sam = verdicts["adamw+sam"]
    assert sam.verdict == "better"
    assert found[3].startswith(f"adamw+sam is better than adamw: test accuracy +{sam.estimate:.2f}")
    assert "] points, p " in found[3]
    assert found[2].startswith("adamcg is worse than adamw: test accuracy −")
    assert found[-1].startswith("adam+warmup, adamw+beta1 and adamw+2epochs: added by the study")


def test_no_difference_is_said_as_such(complete: StudyResults) -> None:
    trials = [replace(each, optimizer="dualadam") for each in complete.trials_of("adamw", "pool")]
    others = [t for t in complete.trials if (t.optimizer, t.phase) != ("dualadam", "pool")]
    found = said(replace(complete, trials=(*others, *trials))).findings
    assert found[0].startswith("dualadam: no difference from adamw seen: test accuracy +0.00")


def test_the_plan_is_one_sentence(complete: StudyResults) -> None:
    assert said(complete).plan[0] == (
        "Planned on 2026-11-28: the expected test accuracy of the best of k = 4 of N = 24 trials "
        "by validation, one family of 4 comparisons with adamw corrected after Holm, study seed 0."
    )


def test_the_loss_may_be_primary(complete: StudyResults) -> None:
    found = said(replace(complete, plan=replace(complete.plan, primary="loss")))
    assert found.findings[3].startswith("adamw+sam is better than adamw: test loss −0.")
    assert "points" not in found.findings[3]
    assert "the expected test loss of the best of k" in found.plan[0]


def test_a_changed_plan_withholds_verdicts(complete: StudyResults) -> None:
    changed = replace(complete, earlier_plans=(StudyPlan(2, 8), StudyPlan(3, 12)))
    found = said(changed)
    assert "The plan was changed 2 times" in found.plan[1]
    assert "verdicts are withheld" in found.plan[1]
    text = " ".join(found.findings)
    assert "no verdict: the plan was changed" in text
    assert "better" not in text
    assert "worse" not in text


def test_the_smallest_difference_that_would_be_found_is_said(complete: StudyResults) -> None:
    readings = Readings(complete)
    sizes = sorted(readings.detectable(name) for name in FAMILY)
    power = next(each for each in said(complete).plan if "80 % of studies" in each)
    assert f"{sizes[0]:.2g} (" in power
    assert f" to {sizes[-1]:.1f} (" in power
    assert power.endswith("in test accuracy points.")


class Found(NamedTuple):
    shares: Shares


@pytest.mark.parametrize(
    ("shares", "part"),
    [
        (Shares(3.0, 2.0, 1.0), "random settings and seeds"),
        (Shares(1.0, 2.0, 1.0), "the test samples"),
        (Shares(1.0, 2.0, 3.0), "the validation samples"),
    ],
)
def test_the_largest_part_of_the_error_is_named(
    complete: StudyResults, monkeypatch: pytest.MonkeyPatch, shares: Shares, part: str
) -> None:
    readings = Readings(complete)
    monkeypatch.setattr(Readings, "detectable", lambda self, name: 1.0)
    monkeypatch.setattr(Readings, "difference", lambda self, *which: Found(shares))
    (_, sentence) = module._power(readings, FAMILY)
    assert sentence.startswith(f"The largest part of the error comes from {part}.")


def test_a_verdict_whose_interval_holds_zero_is_qualified() -> None:
    """Trials all agree, but on few test samples: another test set may say otherwise."""
    results = realistic(samples=60)
    readings = Readings(results)
    found = {each.optimizer: each for each in readings.verdicts}
    adamcm = replace(found["adamcm"], verdict="better", estimate=0.5, low=-0.1, high=1.1)
    sentence = module._finding(readings, adamcm, 2)
    assert "contains 0: another test set may say otherwise" in sentence
    assert "may say otherwise" not in module._finding(readings, replace(adamcm, low=0.1), 2)
    unseen = replace(adamcm, verdict="no difference seen")
    assert "may say otherwise" not in module._finding(readings, unseen, 2)


def test_broken_promises_are_counted_and_called_outside_of_what_is_promised() -> None:
    results = realistic()
    assert said(results).plan[-1] == (
        "None of 192 trials fell far short of its validation result. Rare failures that "
        "validation does not show are outside of what a verdict promises."
    )
    trials = list(results.trials)
    for place in (3, 4):
        ended = trials[place].outcome
        broken = replace(ended.final, test_score=0.1)
        trials[place] = replace(trials[place], outcome=replace(ended, final=broken))
    sentence = said(replace(results, trials=tuple(trials))).plan[-1]
    assert sentence.startswith("2 of 192 trials (1.0 %) fell far short")
    assert ": adamw 2. Rare failures" in sentence


@pytest.mark.parametrize(
    ("outcomes", "sentence"),
    [
        ({"adamw": scores(0.9, 0.8, 0.7)}, "adamw is alone: there is nothing to compare it with."),
        (
            {"adamw": [diverged()] * 3, "sgd": [diverged(), studies.FAILED, diverged()]},
            "All trials diverged, failed, or ended without a result: there is nothing to compare.",
        ),
    ],
)
def test_why_nothing_can_be_compared_is_said(outcomes: dict, sentence: str) -> None:
    assert said(studies.study(outcomes)).findings == [sentence]


def test_trials_without_a_number_are_counted() -> None:
    good: Sequence = [outcome(0.9 + 0.001 * i) for i in range(12)]
    odd = [replace(x, final=replace(x.final, test_score=math.nan)) for x in good[:2]]
    results = studies.study({"adamw": good, "sgd": [*odd, *good[2:]]})
    assert said(results).plan[0] == (
        "No accuracy (NaN), though a finite loss, have 2 of sgd, of 12 trials each: they count as "
        "the worst."
    )


def test_a_baseline_that_diverged_is_compared_all_the_same() -> None:
    """Divergence is a result: the worst of the study."""
    good: Sequence = [outcome(0.9 + 0.001 * i) for i in range(12)]
    results = studies.study({"adamw": [diverged()] * 12, "sgd": good})
    (finding,) = said(results).findings
    assert finding.startswith("sgd ")
