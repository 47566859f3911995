"""Fine-tuning: what is drawn of a study, against computations by hand."""

import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from figures.dualadam_finetune import draw, measure
from steppe._shared.json_values import json_ready
from steppe.compare.records.results import TEST, TUNE, StudyResults, load


@pytest.fixture(scope="module")
def study() -> StudyResults:
    """Of each run, the last epochs: there are many, and intervals take their time."""
    whole = load(Path(__file__).parents[2] / "docs/results/digits.json")
    trials = (
        replace(trial, outcome=replace(trial.outcome, curve=trial.outcome.curve[-3:]))
        for trial in whole.trials
        if trial.outcome is not None
    )
    return replace(whole, trials=tuple(trials))


@pytest.fixture(scope="module")
def data(study: StudyResults) -> dict:
    return json.loads(json.dumps(json_ready(measure(study=study)), allow_nan=False))


def test_it_takes_the_runs_of_dual_adams_relatives(study: StudyResults, data: dict) -> None:
    assert next(iter(data["optimizers"])) == "adamw"
    for name, found in data["optimizers"].items():
        runs = [trial.outcome for trial in study.trials_of(name, TEST)]
        validation = np.array([[each.validation_loss for each in run.curve] for run in runs])
        trained = np.array([[each.train_loss for each in run.curve] for run in runs])
        assert found["perplexity"]["mean"] == pytest.approx(np.exp(validation).mean(0), rel=1e-4)
        assert found["gap"]["mean"] == pytest.approx((validation - trained).mean(0), abs=1e-5)
        assert found["test"] == pytest.approx([math.exp(r.final.test_loss) for r in runs], rel=1e-4)
        tuning = {trial.settings["lr"]: trial for trial in study.trials_of(name, TUNE)}
        for each in data["by_lr"][name]:
            loss = tuning[each["lr"]].outcome.final.validation_loss
            assert each["ends"] == pytest.approx([math.exp(loss)], rel=1e-4)
    figure = draw(data)
    drawn = figure.axes[1].lines[0].get_ydata()
    assert list(drawn) == data["optimizers"]["adamw"]["perplexity"]["mean"]


def test_a_study_without_dual_adam_is_refused(study: StudyResults) -> None:
    others = tuple(each for each in study.contenders if not each.name.startswith("dualadam"))
    with pytest.raises(ValueError, match="no finished runs of DualAdam"):
        measure(study=replace(study, contenders=others))


def test_it_is_drawn(data: dict) -> None:
    figure = draw(data)
    curves, (by_lr, test) = figure.axes[:3], figure.axes[3:]
    assert [len(axes.lines) for axes in curves] == [4, 4, 4]
    assert [label.get_text() for label in test.get_yticklabels()] == list(data["optimizers"])
    means = [np.mean(each["ends"]) for each in data["by_lr"]["adamw"]]
    assert by_lr.lines[0].get_ydata() == pytest.approx(means)
    assert "minus adam+warmup's" in test.texts[2].get_text()


def test_a_run_without_a_finite_loss_is_left_out_of_the_picture(data: dict) -> None:
    lost = copy.deepcopy(data)
    lost["optimizers"]["dualadam"]["test"] = [None] * 10
    lost["by_lr"]["dualadam"][0]["ends"] = [None]
    for each in lost["differences"]:
        if "dualadam" in (each["of"], each["from"]):
            each |= dict.fromkeys(("mean", "low", "high", "p"))
    by_lr, test = draw(lost).axes[3:]
    undrawn = [line for line in by_lr.lines if np.isnan(line.get_ydata()).any()]
    assert np.isnan(undrawn[0].get_ydata()).tolist() == [True] + [False] * 7
    assert [bool(each.get_text()) for each in test.texts] == [False, True, False, True]
