"""Two studies beside each other: what they agree on, and what may not be compared."""

import io
import math
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from helpers import synthetic_studies as studies
from helpers.realistic_study import realistic
from steppe._shared.statistics import Interval
from steppe.compare.records.best_of_k import degrees_of_freedom
from steppe.compare.records.results import MetricDescription
from steppe.compare.records.verdicts import Readings
from steppe.compare.report.two_studies import (
    StudyComparison,
    compare,
    page,
    print_comparison,
    tables,
    write_page,
)
from steppe.compare.report.two_studies.comparison import independent_difference


@pytest.fixture(scope="module")
def found() -> StudyComparison:
    return compare(realistic(), realistic(seed=1))


def printed(found: StudyComparison, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_comparison(console, found)
    return console.file.getvalue()


def test_estimates_are_those_of_both_studies(found: StudyComparison) -> None:
    both = Readings(realistic()), Readings(realistic(seed=1))
    assert [each.name for each in found.shared] == [c.name for c in realistic().contenders]
    sam = found.shared[-1]
    assert (sam.ours, sam.theirs) == tuple(each.expected("adamw+sam", "score", 4) for each in both)
    changes = [each.difference("adamw+sam", "adamw", "score", 4) for each in both]
    assert (sam.our_change.mean, sam.their_change.mean) == tuple(c.estimate for c in changes)
    assert (sam.our_verdict, sam.their_verdict) == ("better", "better")
    assert math.isnan(found.shared[0].our_change.mean)  # the baseline's


def test_the_errors_of_independent_studies_add_up_in_squares() -> None:
    from scipy.stats import t

    freedoms = degrees_of_freedom(24, 4), degrees_of_freedom(48, 8)
    errors = 0.3, 0.4
    intervals = [
        Interval(mean, mean - half, mean + half)
        for mean, error, freedom in zip((2.0, 1.0), errors, freedoms, strict=True)
        for half in [error * t.ppf(0.975, freedom)]
    ]
    apart = independent_difference(*intervals, *freedoms)
    # √(0.3² + 0.4²) is 0.5; Welch's degrees of freedom.
    freedom = 0.5**4 / (0.3**4 / freedoms[0] + 0.4**4 / freedoms[1])
    assert apart.mean == pytest.approx(1.0)
    assert apart.high - apart.mean == pytest.approx(0.5 * t.ppf(0.975, freedom))
    assert apart.mean - apart.low == pytest.approx(apart.high - apart.mean)


def test_without_errors_there_is_no_interval_between() -> None:
    bare = Interval(1.0, math.nan, math.nan)
    assert math.isnan(independent_difference(bare, bare, 9.0, 9.0).low)


@pytest.mark.parametrize(
    ("verdicts", "contradict"),
    [
        (("better", "worse"), True),
        (("worse", "better"), True),
        (("better", "better"), False),
        (("better", "no difference seen"), False),
        (("better", "exploratory"), False),
    ],
)
def test_better_and_worse_contradict(
    found: StudyComparison, verdicts: tuple[str, str], contradict: bool
) -> None:
    one = replace(found.shared[4], our_verdict=verdicts[0], their_verdict=verdicts[1])
    assert one.contradict is contradict
    text = " ".join(printed(replace(found, shared=(*found.shared[:4], one))).split())
    assert ("The studies contradict each other on adamcm." in text) is contradict
    assert ("No verdict of one study contradicts the other’s" in text) is not contradict


@pytest.mark.parametrize("change", ["baseline", "reading", "budget"])
def test_verdicts_on_different_questions_cannot_contradict(change: str) -> None:
    """What is better than one baseline was said to contradict that it is worse than another."""
    other = realistic(seed=1)
    first, second, *others = other.contenders
    plan = {
        "baseline": {"family": tuple({first.name, *other.plan.family} - {second.name})},
        "reading": {"primary": "loss"},
        "budget": {"budget": 2},
    }[change]
    if change == "baseline":
        other = replace(other, contenders=(second, first, *others))
    made = compare(realistic(), replace(other, plan=replace(other.plan, **plan)))
    assert any(each.our_verdict and each.their_verdict for each in made.shared)
    decided = [replace(e, our_verdict="better", their_verdict="worse") for e in made.shared]
    assert not any(each.contradict or each.both_decided for each in decided)
    assert "verdicts that answer the same question" in " ".join(printed(made).split())


def test_the_differences_of_plans_are_listed(found: StudyComparison) -> None:
    assert dict(found.differences) == {"plan: study seed": ("0", "1")}
    other = realistic(seed=1)
    other = replace(other, setup=other.setup | {"model": "mlp"}, author="Bob", created="2027-01-02")
    listed = compare(realistic(), other).differences
    assert listed["setup: model"] == ("small_cnn", "mlp")
    assert listed["planned on"] == ("2026-11-28", "2027-01-02")
    assert "setup: epochs" not in listed


def test_equal_seeds_are_no_independent_studies(found: StudyComparison) -> None:
    assert found.independent
    assert "not independent" not in printed(found)
    other = realistic(seed=1)
    same = compare(realistic(), replace(other, plan=replace(other.plan, study_seed=0)))
    assert not same.independent
    assert "Both studies have study seed 0" in printed(same)


def test_budgets_may_differ(found: StudyComparison) -> None:
    other = realistic(seed=1)
    smaller = compare(realistic(), replace(other, plan=replace(other.plan, budget=2)))
    assert smaller.budget == 2
    assert "k = 2" in printed(smaller)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"task": "digits"}, "one task to be compared, got fashion-mnist and digits"),
        (
            {"metric": MetricDescription("error")},
            "one metric to be compared, got accuracy and error",
        ),
        ({"metric": MetricDescription(unit="")}, "one unit to be compared, got % and"),
        ({"metric": MetricDescription(higher_is_better=False)}, "one direction to be compared"),
        ({"trials": ()}, "must be finished to be compared: trials of fashion-mnist-00000001"),
    ],
)
def test_what_cannot_be_compared_is_refused(changes: dict, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        compare(realistic(), replace(realistic(seed=1), **changes))


def test_a_study_is_not_set_beside_itself() -> None:
    with pytest.raises(ValueError, match="two different ones, got fashion-mnist-00000000 twice"):
        compare(realistic(), realistic())


def test_studies_need_an_optimizer_in_common() -> None:
    ours = studies.study({"adamw": studies.scores(0.9, 0.8, 0.7)})
    theirs = studies.study({"sgd": studies.scores(0.9, 0.8, 0.7)})
    with pytest.raises(ValueError, match="no optimizer in common"):
        compare(ours, theirs)


def test_other_baselines_leave_the_results(found: StudyComparison) -> None:
    other = realistic(seed=1)
    moved = replace(
        other,
        contenders=(other.contenders[2], *other.contenders[:2], *other.contenders[3:]),
        plan=replace(other.plan, family=("adamcm", "adamw+sam")),
    )
    made = tables(compare(realistic(), moved))
    assert list(made) == ["levels", "plans"]
    assert list(tables(found)) == ["changes", "levels", "plans"]


def test_the_page_holds_both_and_loads_nothing(found: StudyComparison, tmp_path: Path) -> None:
    path = tmp_path / "two.html"
    write_page(found, path)
    text = path.read_text()
    assert text == page(found)
    body = text[: text.index("<script type")]
    assert "fashion-mnist-00000000" in body
    assert "fashion-mnist-00000001" in body
    assert "no contradiction" in body
    assert 'src="http' not in text


def test_a_narrow_terminal_fits(found: StudyComparison) -> None:
    assert max(map(len, printed(found, 40).splitlines())) <= 40
