"""Rows of tables from outcomes made up for them, and what a file keeps of them."""

import dataclasses
import json
import math
from pathlib import Path

import pytest

from helpers import synthetic_studies as studies
from helpers.realistic_study import realistic
from helpers.synthetic_studies import outcome, scores
from steppe.compare.records.results import (
    ContenderRecord,
    Curvature,
    MetricDescription,
    RunCosts,
    load,
)
from steppe.compare.records.summary import best_first, summarise


def test_a_row_holds_what_the_best_of_k_is_worth() -> None:
    """With a budget of one trial all trials count alike."""
    runs = [
        outcome(0.90, test_loss=0.3, train_loss=0.1, costs=RunCosts(1.0, 30.0, 8.0, 100.0)),
        outcome(0.92, test_loss=0.5, train_loss=0.2, costs=RunCosts(9.0, 90.0, 8.0, 300.0)),
        outcome(0.94, test_loss=0.4, train_loss=0.0, costs=RunCosts(2.0, 40.0, 8.0, 200.0)),
    ]
    runs[2] = dataclasses.replace(runs[2], curvature=Curvature(0.03, 8.0, 6.0, 7.0, 38.0))
    contender = ContenderRecord("adamw", defaults={"lr": 1e-3})
    (row,) = summarise(studies.study({"adamw": runs}, contenders=[contender]))
    assert (row.name, row.trials, row.diverged, row.broken_promises) == ("adamw", 3, 0, 0)
    assert row.score.mean == pytest.approx(92.0)
    assert row.score.low < 90.0 < 94.0 < row.score.high
    assert row.loss.mean == pytest.approx(0.4)
    assert row.train_loss == pytest.approx(0.1)
    assert row.gap == pytest.approx(0.3)
    assert row.recommended == {"lr": 1e-3}
    # Nothing is searched: the first trials are the runs at recommended settings.
    assert row.recommended_score.mean == pytest.approx(92.0)
    assert row.sharpness.mean == pytest.approx((2 * 0.01 + 0.03) / 3)
    assert row.trace.mean == pytest.approx(4.0)
    assert (row.step_ms, row.seconds, row.state_bytes, row.peak_bytes) == (2.0, 40.0, 8.0, 300.0)


def test_what_diverged_or_failed_counts_as_the_worst_test_result() -> None:
    cut_short = dataclasses.replace(studies.diverged(), costs=RunCosts(99.0, 0.1, 8.0))
    runs = [outcome(0.9), cut_short, studies.FAILED, outcome(0.8)]
    (row,) = summarise(studies.study({"sgd": runs}))
    assert (row.trials, row.diverged) == (4, 2)
    assert row.score.mean == pytest.approx((90.0 + 3 * 80.0) / 4)


def test_a_contender_none_of_whose_trials_came_to_an_end_is_worth_the_worst() -> None:
    lost = [studies.diverged(), studies.FAILED, studies.diverged()]
    adamw, sgd = summarise(studies.study({"adamw": scores(0.9, 0.8, 0.7), "sgd": lost}))
    assert sgd.score.mean == pytest.approx(70.0)
    assert sgd.recommended == {}
    assert math.isnan(sgd.train_loss)
    assert math.isnan(sgd.sharpness.mean)
    assert best_first([sgd, adamw], MetricDescription())[0] == adamw


def test_a_metric_without_a_factor_stays_as_it_is() -> None:
    metric = MetricDescription("error", "", 1.0, higher_is_better=False)
    (row,) = summarise(studies.study({"adamw": scores(0.25, 0.75, 0.5)}, metric=metric))
    assert row.score.mean == pytest.approx(0.5)


def test_settings_in_the_outer_tenth_of_what_was_tried_are_flagged() -> None:
    space = {"lr": {"low": 1e-4, "high": 1e-1, "log": True}}
    contender = ContenderRecord("adamw", space=space, defaults={"lr": 1e-3})
    tried = [{"lr": lr} for lr in (1e-3, 1e-2, 9e-3)]
    for best, flagged in ((1, ("lr",)), (0, ("lr",))):
        found = scores(*(0.9 if number == best else 0.5 for number in range(3)))
        pool = studies.runs_of("adamw", found, tried)
        (row,) = summarise(studies.study({}, contenders=[contender], trials=pool))
        assert row.at_edge == flagged
    pool = studies.runs_of("adamw", scores(0.5, 0.6, 0.9), [{"lr": x} for x in (1e-3, 1e-2, 3e-3)])
    (row,) = summarise(studies.study({}, contenders=[contender], trials=pool))
    assert row.at_edge == ()


# After each task the accuracy on it and on those before, in two runs.
FALLS = [
    ([0.9], [0.8, 0.7], [0.6, 0.65, 1.0]),  # 0.3 and 0.05
    ([0.5], [0.75, 0.6], [0.75, 0.7, 0.9]),  # 0 and −0.1
]


def test_forgetting_is_the_mean_fall_in_the_metrics_unit() -> None:
    runs = [studies.learnt(*rows) for rows in FALLS]
    (row,) = summarise(studies.streamed({"adamw": [*runs, studies.FAILED]}))
    assert row.forgetting.mean == pytest.approx(100 * (0.175 - 0.05) / 2)


def test_what_is_forgotten_is_judged_by_where_each_task_has_ended() -> None:
    """Of two epochs a task, the first one's accuracies are passed over."""
    rows = ([1.0], [0.9], [1.0, 1.0], [0.8, 0.7], [1.0, 1.0, 0.1], [0.6, 0.65, 1.0])
    (row,) = summarise(studies.streamed({"adamw": [studies.learnt(*rows)]}, passes=2))
    assert row.forgetting.mean == pytest.approx(17.5)


def test_only_of_streams_something_is_forgotten() -> None:
    (row,) = summarise(studies.study({"adamw": scores(0.9, 0.8)}))
    assert math.isnan(row.forgetting.mean)
    # One task has none before it.
    (row,) = summarise(studies.streamed({"adamw": [studies.learnt([0.9])]}))
    assert math.isnan(row.forgetting.mean)


def test_saving_keeps_every_digit_of_where_runs_ended(tmp_path: Path) -> None:
    study = realistic()
    study.save(tmp_path / "study.json")
    again = load(tmp_path / "study.json")
    pairs = [
        (one.outcome, other.outcome)
        for one, other in zip(study.trials, again.trials, strict=True)
        if one.outcome and not one.outcome.diverged
    ]
    assert all(one.final == other.final for one, other in pairs)
    assert all(one.samples == other.samples for one, other in pairs)


def test_the_accuracies_of_tasks_are_kept(tmp_path: Path) -> None:
    study = studies.streamed({"adamw": [studies.learnt(*rows) for rows in FALLS]})
    # A name is a path too.
    study.save(str(tmp_path / "study.json"))
    again = load(str(tmp_path / "study.json"))
    for trial, rows in zip(again.trials, FALLS, strict=True):
        assert [epoch.tasks for epoch in trial.outcome.curve] == [tuple(row) for row in rows]


def test_curves_have_no_columns_without_content(tmp_path: Path) -> None:
    study = studies.study({"adamw": scores(0.9, 0.8)})
    path = tmp_path / "study.json"
    study.save(path)
    content = json.loads(path.read_text())
    names = {"train_loss", "validation_loss", "validation_score", "lr", "seconds"}
    assert all(trial["outcome"]["curve"].keys() == names for trial in content["trials"])
    again = load(path)
    assert [epoch.tasks for epoch in again.trials[0].outcome.curve] == [(), ()]
