"""Rows and readings from outcomes made up for them."""

import dataclasses
import json
import math
from pathlib import Path

import pytest

from helpers import synthetic_studies as studies
from helpers.synthetic_studies import outcome, scores
from steppe._shared.statistics import paired
from steppe.compare.records.results import Contender, Curvature, Metric, RunCosts, load
from steppe.compare.records.summary import against_controls, baseline_of, chosen_trial, summarise


def test_a_row_holds_means_over_seeds() -> None:
    runs = [
        outcome(0.90, test_loss=0.3, train_loss=0.1, costs=RunCosts(1.0, 30.0, 8.0, 100.0)),
        outcome(0.92, test_loss=0.5, train_loss=0.2, costs=RunCosts(9.0, 90.0, 8.0, 300.0)),
        outcome(0.94, test_loss=0.4, train_loss=0.0, costs=RunCosts(2.0, 40.0, 8.0, 200.0)),
    ]
    curvature = Curvature(0.03, 8.0, 6.0, 7.0, 38.0)
    runs[2] = dataclasses.replace(runs[2], curvature=curvature)
    contender = Contender("adamw", defaults={"lr": 1e-3})
    (row,) = summarise(studies.study({"adamw": runs}, contenders=[contender]))
    assert (row.name, row.runs, row.diverged, row.failed) == ("adamw", 3, 0, 0)
    assert row.score.mean == pytest.approx(92.0)
    assert (row.score.low, row.score.high) == pytest.approx((90.0, 94.0))
    assert row.test_loss.mean == pytest.approx(0.4)
    assert row.train_loss.mean == pytest.approx(0.1)
    assert row.gap.mean == pytest.approx(0.3)
    assert (row.gap.low, row.gap.high) == pytest.approx((0.2, 0.4))
    assert row.sharpness.mean == pytest.approx((2 * 0.01 + 0.03) / 3)
    assert row.largest.mean == pytest.approx(4.0)
    assert row.trace.mean == pytest.approx(4.0)
    assert row.preconditioned.mean == pytest.approx(269.0)
    assert row.threshold.mean == pytest.approx((2 * 38_000 + 38) / 3)
    assert (row.step_ms, row.seconds, row.state_bytes, row.peak_bytes) == (2.0, 40.0, 8.0, 300.0)
    assert row.settings == {"lr": 1e-3}
    assert row.score_change is None
    assert row.loss_change is None


def test_what_diverged_or_failed_is_counted_and_in_no_mean() -> None:
    cut_short = dataclasses.replace(studies.diverged(), costs=RunCosts(99.0, 0.1, 8.0))
    runs = [outcome(0.9), cut_short, cut_short, studies.FAILED, outcome(0.8)]
    (row,) = summarise(studies.study({"sgd": runs}))
    assert (row.runs, row.diverged, row.failed) == (5, 2, 1)
    assert row.score.mean == pytest.approx(85.0)
    assert (row.step_ms, row.seconds) == (1.5, 2.0)


def test_a_contender_without_a_whole_run_has_no_numbers() -> None:
    rows = summarise(studies.study({"adamw": [], "sgd": [studies.diverged()], "nadam": [None]}))
    assert [(row.runs, row.diverged, row.failed) for row in rows] == [
        (0, 0, 0),
        (1, 1, 0),
        (1, 0, 1),
    ]
    assert all(math.isnan(row.score.mean) for row in rows)
    assert all(math.isnan(row.step_ms) for row in rows)
    assert [row.state_bytes for row in rows] == pytest.approx(
        [math.nan, 8.0, math.nan], nan_ok=True
    )
    assert all(math.isnan(row.peak_bytes) for row in rows)


def test_tuning_trials_are_in_no_mean() -> None:
    tried = studies.tuning("adamw", [({}, outcome(0.1)), ({}, outcome(0.2))])
    (row,) = summarise(studies.study({"adamw": scores(0.9, 0.8)}, trials=tried))
    assert row.runs == 2
    assert row.score.mean == pytest.approx(85.0)


def test_changes_pair_equal_seeds_that_are_whole_in_the_metrics_unit() -> None:
    found = {
        "adamw": [*scores(0.5, 0.6), studies.diverged(), outcome(0.9)],
        "sgd": [outcome(0.6, 0.2), outcome(0.8, 0.3), outcome(0.1), studies.FAILED],
    }
    adamw, sgd = summarise(studies.study(found))
    assert adamw.score_change is None
    assert sgd.score_change.seeds == 2
    assert sgd.score_change.difference.mean == pytest.approx(15.0)
    assert sgd.loss_change.difference.mean == pytest.approx(-0.05)


def test_another_baseline_can_be_named() -> None:
    study = studies.study({"adamw": scores(0.5, 0.7), "sgd": scores(0.6, 0.9)})
    adamw, sgd = summarise(study, "sgd")
    assert sgd.score_change is None
    assert adamw.score_change.difference.mean == pytest.approx(-15.0)


def test_an_unknown_baseline_is_refused_with_a_guess() -> None:
    study = studies.study({"adamw": scores(0.5)})
    with pytest.raises(ValueError, match="baseline: no contender is called 'adam': did you mean"):
        summarise(study, "adam")
    assert baseline_of(study, None) == "adamw"


def test_a_metric_without_a_factor_stays_as_it_is() -> None:
    metric = Metric("error", "", 1.0, higher_is_better=False)
    (row,) = summarise(studies.study({"adamw": scores(0.25, 0.75)}, metric=metric))
    assert row.score.mean == 0.5


def test_controls_are_read_as_a_family_of_their_own() -> None:
    names = ("adamw", "adam+warmup", "dualadam", "adam+warmup+sam", "dualadam+sam")
    control_for = {"adam+warmup": ("dualadam",), "adam+warmup+sam": ("dualadam+sam",)}
    contenders = [Contender(name, control_for=control_for.get(name, ())) for name in names]
    runs = {
        "adamw": scores(0.5, 0.6, 0.7),
        "adam+warmup": scores(0.70, 0.71, 0.73),
        "dualadam": scores(0.80, 0.82, 0.83),
        "adam+warmup+sam": scores(0.60, 0.61, 0.62),
        "dualadam+sam": scores(0.60, 0.62, 0.65),
    }
    first, second = against_controls(studies.study(runs, contenders=contenders))
    assert (first.name, first.control) == ("dualadam", "adam+warmup")
    assert (second.name, second.control) == ("dualadam+sam", "adam+warmup+sam")
    assert first.score.difference.mean == pytest.approx(31 / 3)
    raw = paired({0: 80.0, 1: 82.0, 2: 83.0}, {0: 70.0, 1: 71.0, 2: 73.0})
    assert first.score.p == pytest.approx(2 * raw.p)
    assert first.loss.difference.all_equal


# After each task the accuracy on it and on those before, in two runs.
FALLS = [
    ([0.9], [0.8, 0.7], [0.6, 0.65, 1.0]),  # 0.3 and 0.05
    ([0.5], [0.75, 0.6], [0.75, 0.7, 0.9]),  # 0 and −0.1
]


def test_forgetting_is_the_mean_fall_in_the_metrics_unit() -> None:
    runs = [studies.learnt(*rows) for rows in FALLS]
    runs += [studies.diverged(), studies.FAILED]
    (row,) = summarise(studies.streamed({"adamw": runs}))
    assert row.forgetting.mean == pytest.approx(100 * (0.175 - 0.05) / 2)
    assert (row.forgetting.low, row.forgetting.high) == pytest.approx((-5.0, 17.5))
    assert row.score.mean == pytest.approx(100 * (2.25 / 3 + 2.35 / 3) / 2)


def test_what_is_forgotten_is_judged_by_where_each_task_has_ended() -> None:
    """Of two epochs a task, the first one's accuracies are passed over."""
    rows = ([1.0], [0.9], [1.0, 1.0], [0.8, 0.7], [1.0, 1.0, 0.1], [0.6, 0.65, 1.0])
    (row,) = summarise(studies.streamed({"adamw": [studies.learnt(*rows)]}, passes=2))
    assert row.forgetting.mean == pytest.approx(17.5)


def test_only_of_streams_something_is_forgotten() -> None:
    rows = summarise(studies.study({"adamw": scores(0.9, 0.8), "sgd": []}))
    assert all(math.isnan(row.forgetting.mean) for row in rows)
    # One task has none before it.
    (row,) = summarise(studies.streamed({"adamw": [studies.learnt([0.9])]}))
    assert math.isnan(row.forgetting.mean)


def test_without_controls_there_is_no_reading() -> None:
    assert against_controls(studies.study({"adamw": scores(0.9)})) == []


def test_the_chosen_trial_is_the_one_whose_settings_the_tests_had() -> None:
    tried = studies.tuning(
        "adamw", [({"lr": 0.1}, outcome(0.5)), ({"lr": 0.2}, outcome(0.6)), ({"lr": 0.3}, None)]
    )
    contender = Contender("adamw", defaults={"lr": 0.2})
    study = studies.study({"adamw": scores(0.9)}, contenders=[contender], trials=tried)
    assert chosen_trial(study, "adamw") == tried[1]
    assert chosen_trial(studies.study({"adamw": []}, trials=tried), "adamw") is None


def test_saving_keeps_every_digit_of_where_runs_ended(tmp_path: Path) -> None:
    """Rounded, differences that are equal on every seed would no longer be so."""
    study = studies.plausible(3, 4, 2, 3)
    study.save(tmp_path / "study.json")
    again = load(tmp_path / "study.json")
    assert [t.outcome.final for t in again.trials] == [t.outcome.final for t in study.trials]
    # As text, in which what there is none of (NaN) equals itself.
    assert str(summarise(again)) == str(summarise(study))


def test_the_accuracies_of_tasks_are_kept(tmp_path: Path) -> None:
    study = studies.streamed({"adamw": [studies.learnt(*rows) for rows in FALLS]})
    study.save(tmp_path / "study.json")
    again = load(tmp_path / "study.json")
    for trial, (first, second, last) in zip(again.trials, FALLS, strict=True):
        assert [epoch.tasks for epoch in trial.outcome.curve] == [
            tuple(first),
            tuple(second),
            tuple(last),
        ]
    assert str(summarise(again)) == str(summarise(study))


def test_a_file_from_before_there_were_streams_is_read(tmp_path: Path) -> None:
    """Where nothing is a stream, the curves have no column for tasks, as they never had."""
    study = studies.study({"adamw": scores(0.9, 0.8)})
    path = tmp_path / "study.json"
    study.save(path)
    content = json.loads(path.read_text())
    names = {"train_loss", "validation_loss", "validation_score", "lr", "seconds"}
    assert all(trial["outcome"]["curve"].keys() == names for trial in content["trials"])
    for each in ("length", "stream"):
        assert each not in content["setup"]
    again = load(path)
    assert [epoch.tasks for epoch in again.trials[0].outcome.curve] == [(), ()]
    assert again.trials == study.trials
