"""What is forgotten at a common loss on the second task, of curves with known values."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from helpers.synthetic_studies import SETUP, diverged, outcome, runs_of, study
from steppe.compare.records.best_of_k import Pool, compare_pools
from steppe.compare.records.forgetting_at_common_loss import (
    common_loss,
    forgetting_at_common_loss,
    fronts,
    least_forgetting,
    value_at,
)
from steppe.compare.records.json_format import to_json
from steppe.compare.records.results import (
    RECOMMENDED,
    ContenderRecord,
    FineTuningCurve,
    MetricDescription,
    Outcome,
    StudyPlan,
    StudyResults,
)
from steppe.compare.records.second_task import SecondTask
from steppe.compare.records.validation import check_results
from steppe.compare.records.verdicts import Readings
from steppe.compare.report.page.forgetting_charts import forgetting as chart
from steppe.compare.report.tables.forgetting import forgetting as table

SECOND = SecondTask("other", "other", batch_size=4, steps=5, lrs=(0.01, 0.1))
STEPS = SECOND.measured_steps()


def curve(
    slope: float, base: float = 0.1, lr: float = 0.01, rate: float = 1.0, test: float = 1.0
) -> FineTuningCurve:
    """Make a curve whose first task's loss is a line in the logarithm of the second one's.

    At the loss e^−x on the second, the first has the validation loss base + slope · x, the test
    loss by ``test`` more, and the score 0.9 − 0.1 · x. It ends at x = rate · (number of steps).
    """
    x = [rate * place for place in range(len(STEPS))]
    second = tuple(math.exp(-each) for each in x)
    losses = tuple(base + slope * each for each in x)
    scores = tuple(0.9 - 0.1 * each for each in x)
    tested = tuple(each + test for each in losses)
    others = tuple(2 * each for each in second)
    return FineTuningCurve(
        lr, STEPS, losses, scores, tested, scores, second, scores, others, scores
    )


def tuned(slopes: Sequence[float], **changes: Any) -> Outcome:
    curves = [curve(each, lr=lr, **changes) for each, lr in zip(slopes, SECOND.lrs, strict=True)]
    return outcome(fine_tuning=tuple(curves))


def compared(
    outcomes: dict[str, list[Outcome | None]], loss: float | None = 0.2, **changes: Any
) -> StudyResults:
    setup = {**SETUP, "then": to_json(replace(SECOND, loss=loss))}
    return study(outcomes, setup=setup, **changes)


@pytest.mark.parametrize("loss", [1.0, 0.7, 0.2, math.exp(-3)])
def test_a_value_is_read_on_the_line(loss: float) -> None:
    line = curve(0.5)
    assert value_at(line, loss, line.validation_loss) == pytest.approx(0.1 - 0.5 * math.log(loss))
    assert value_at(line, loss, line.test_score) == pytest.approx(0.9 + 0.1 * math.log(loss))


@pytest.mark.parametrize(("loss", "expected"), [(0.5, 2.5), (0.0, 3.0), (-1.0, 3.5), (-2.0, 4.0)])
def test_a_loss_that_is_not_positive_is_read_on_a_straight_line(
    loss: float, expected: float
) -> None:
    fine_tuned = replace(curve(1.0), second_validation_loss=(1.0, 0.0, -2.0))
    assert value_at(fine_tuned, loss, (2.0, 3.0, 4.0)) == expected


def test_where_the_loss_comes_down_first() -> None:
    up_again = replace(curve(0.0), second_validation_loss=(1.0, 0.1, 0.5, 0.1, 0.01, 0.01))
    assert len(STEPS) == 6
    assert value_at(up_again, 0.1, (0.0, 1.0, 2.0, 3.0, 4.0, 5.0)) == 1.0
    # A model that is there before it is fine-tuned has forgotten nothing.
    assert value_at(up_again, 1.5, (0.25, 1.0, 2.0, 3.0, 4.0, 5.0)) == 0.25
    assert math.isnan(value_at(up_again, 1e-3, range(6)))
    broken = replace(up_again, second_validation_loss=(math.nan,) * 6)
    assert math.isnan(value_at(broken, 0.1, range(6)))


def test_of_each_trial_the_lr_is_taken_that_forgets_least_by_validation() -> None:
    run = tuned([0.5, 0.25])
    assert least_forgetting(run, 0.2) is run.fine_tuning[1]
    # Test losses choose nothing.
    misled = replace(run.fine_tuning[0], test_loss=(0.0,) * 6)
    run = replace(run, fine_tuning=(misled, run.fine_tuning[1]))
    assert least_forgetting(run, 0.2) is run.fine_tuning[1]
    assert least_forgetting(run, math.exp(-5.5)) is None
    far = replace(run.fine_tuning[1], second_validation_loss=(1.0,) * 6)
    run = replace(run, fine_tuning=(misled, far))
    assert least_forgetting(run, 0.2) is misled


def test_the_common_loss_is_that_of_the_plan_or_of_the_baselines_median() -> None:
    rates = (1.0, 0.5, 0.25, 0.1)
    ours = [tuned([1, 1], rate=rate) for rate in rates[:3]]
    outcomes = {"adamw": ours, "sgd": [tuned([1, 1], rate=0.01)] * 3}
    assert common_loss(compared(outcomes, loss=0.3)) == 0.3
    assert common_loss(compared(outcomes, loss=None)) == pytest.approx(
        0.25 + 0.75 * math.exp(-5 * 0.5)
    )
    lost = {**outcomes, "adamw": [diverged(), None, ours[0]]}
    assert common_loss(compared(lost, loss=None)) == pytest.approx(0.25 + 0.75 * math.exp(-5))
    assert math.isnan(common_loss(study(outcomes)))
    assert math.isnan(common_loss(compared({"adamw": [diverged()] * 3}, loss=None)))


def test_contenders_are_compared_by_their_lines() -> None:
    slopes = {"adamw": 0.5, "sgd": 0.25}
    drawn = np.random.default_rng(0).random(12)
    outcomes = {
        name: [
            replace(tuned([9, slope], base=x), final=replace(outcome(0.5 + x / 9).final))
            for x in drawn.tolist()
        ]
        for name, slope in slopes.items()
    }
    results = compared(outcomes, plan=StudyPlan(budget=4, trials=12, family=("sgd",)))
    adamw, sgd = forgetting_at_common_loss(Readings(results))
    wanted = -math.log(0.2) * (0.25 - 0.5)
    assert (adamw.name, adamw.reached, adamw.loss_difference) == ("adamw", 12, None)
    assert sgd.loss_difference is not None
    assert sgd.lost_difference is not None
    assert sgd.loss_difference.estimate == pytest.approx(wanted)
    assert sgd.loss.mean - adamw.loss.mean == pytest.approx(wanted)
    # The best four of twelve by validation, and what they have lost is the same for all.
    assert adamw.lost.mean == pytest.approx(-10 * math.log(0.2))
    assert sgd.lost_difference.estimate == pytest.approx(0.0)
    score = np.array([0.5 + x / 9 for x in drawn])
    pools = [
        Pool(score, np.full(12, 0.3), drawn + 1 - slope * math.log(0.2)) for slope in (0.25, 0.5)
    ]
    assert sgd.loss_difference.p == compare_pools(*pools, 4).p


def test_what_has_not_come_there_counts_as_the_worst() -> None:
    good, far = tuned([0.5, 0.5]), tuned([0.5, 0.5], rate=0.01)
    worst = tuned([3.0, 3.0])
    outcomes = {"adamw": [good, good, worst], "sgd": [far, diverged(), None]}
    adamw, sgd = forgetting_at_common_loss(Readings(compared(outcomes)))
    at = {slope: 1.1 - slope * math.log(0.2) for slope in (0.5, 3.0)}
    assert (adamw.reached, sgd.reached) == (3, 0)
    assert adamw.loss.mean == pytest.approx((2 * at[0.5] + at[3.0]) / 3)
    assert sgd.loss.mean == pytest.approx(at[3.0])


def test_a_score_of_which_less_is_better_is_lost_by_rising() -> None:
    run = tuned([0.5, 0.5])
    perplexity = MetricDescription("perplexity", "", 1.0, higher_is_better=False)
    curves = tuple(replace(each, test_score=each.test_loss) for each in run.fine_tuning)
    outcomes = {"adamw": [replace(run, fine_tuning=curves)] * 3}
    (found,) = forgetting_at_common_loss(Readings(compared(outcomes, metric=perplexity)))
    assert found.lost.mean == pytest.approx(-0.5 * math.log(0.2))


def test_without_a_second_task_there_is_nothing() -> None:
    plain = study({"adamw": [outcome()] * 3})
    assert forgetting_at_common_loss(Readings(plain)) == []
    assert (table(Readings(plain)).rows, chart(plain), fronts(plain)) == ([], [], {})
    nowhere = compared({"adamw": [tuned([1, 1])] * 3}, loss=1e-9)
    assert forgetting_at_common_loss(Readings(nowhere)) == []
    assert (table(Readings(nowhere)).rows, chart(nowhere)) == ([], [])


def test_fronts_are_means_of_runs_at_recommended_settings() -> None:
    space = {"lr": {"low": 1e-5, "high": 1e-1, "log": True}}
    record = ContenderRecord("adamw", space=space, defaults={"lr": 1e-3})
    again = [tuned([1, slope], test=0.0) for slope in (0.25, 0.75)]
    results = compared(
        {"adamw": [tuned([1, 1])] * 3},
        contenders=[record],
        trials=runs_of("adamw", again, {"lr": 1e-3}, RECOMMENDED),
    )
    found = fronts(results)["adamw"]
    assert [point.step for point in found] == list(STEPS)
    for place, point in enumerate(found):
        assert point.first == pytest.approx(0.1 + 0.5 * place)
        assert point.second == pytest.approx(2 * math.exp(-place))
    (drawn,) = chart(results)
    assert drawn.traces[0]["y"] == [point.first for point in found]


def test_losses_that_are_not_positive_are_drawn_on_a_straight_axis() -> None:
    def kinds(run: Outcome) -> list[str]:
        space = {"lr": {"low": 1e-5, "high": 1e-1, "log": True}}
        trials = runs_of("adamw", [run] * 2, {"lr": 1e-3}, RECOMMENDED)
        record = ContenderRecord("adamw", space=space, defaults={"lr": 1e-3})
        (drawn,) = chart(compared({"adamw": [run] * 3}, contenders=[record], trials=trials))
        return [drawn.layout[axis]["type"] for axis in ("xaxis", "yaxis")]

    run = tuned([1, 1])
    assert kinds(run) == ["log", "log"]
    hinged = [replace(each, second_test_loss=(0.0,) * len(STEPS)) for each in run.fine_tuning]
    assert kinds(replace(run, fine_tuning=tuple(hinged))) == ["linear", "log"]


def test_the_table_has_a_row_for_each_contender() -> None:
    outcomes = {"adamw": [tuned([0.5, 0.5])] * 3, "sgd": [tuned([0.25, 1])] * 3}
    made = table(Readings(compared(outcomes)))
    assert made.caption == "Forgetting: toy, where the loss on other is 0.200"
    assert [name for name, _ in made.rows] == ["adamw", "sgd"]
    assert made.rows[0][1][1].text == "–"
    assert made.rows[1][1][1].text == "−0.40"
    assert made.rows[1][1][-1].text == "3"


def test_curves_of_a_file_must_be_those_of_its_second_task() -> None:
    good = compared({"adamw": [tuned([1, 1])] * 3})
    check_results(good)
    (first, *_) = good.trials
    run = first.outcome
    assert run is not None
    one, two = run.fine_tuning

    def refused(message: str, **changes: Any) -> None:
        broken = replace(first, outcome=replace(run, **changes))
        with pytest.raises(ValueError, match=message):
            check_results(replace(good, trials=(broken, *good.trials[1:])))

    refused(
        r"fine_tuning must be curves of the lrs \(0.01, 0.1\), got \(0.01,\)", fine_tuning=(one,)
    )
    short = replace(two, test_loss=(1.0,))
    refused(r"fine_tuning\[1\].test_loss must be 6 numbers", fine_tuning=(one, short))
    other = replace(two, steps=(0, 1, 2, 3, 4, 7))
    refused(r"fine_tuning\[1\].steps must be \(0, 1, 2, 3, 4, 5\)", fine_tuning=(one, other))
    with pytest.raises(ValueError, match="fine_tuning must be curves of the lrs"):
        check_results(study({"adamw": [run] * 3}))
    for changes, message in (({"loss": -1.0}, "then.loss must be"), ({"steps": 0}, "then.steps")):
        setup = {**SETUP, "then": to_json(replace(SECOND, **changes))}
        with pytest.raises(ValueError, match=message):
            check_results(replace(good, setup=setup))
