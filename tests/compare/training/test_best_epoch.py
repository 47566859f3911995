"""Early stopping: what is evaluated and kept is the best epoch by validation, also after a kill."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from helpers.training_runs import KillError, killed_after, numbers, train_on
from steppe.compare.data.datasets import Data
from steppe.compare.planning.options import StudyOptions
from steppe.compare.planning.presets import USUAL
from steppe.compare.planning.study import plan_study
from steppe.compare.training import checkpoint
from steppe.compare.training.run import RunContext

MakeRun = Any

# With this lr scores go up and down, and the last epoch is not the best.
WILD = {"lr": 1.5, "weight_decay": 0.0}


def best(curve: Any) -> int:
    keys = [(each.validation_score, -each.validation_loss, -n) for n, each in enumerate(curve)]
    return keys.index(max(keys))


@pytest.mark.parametrize("name", ["sgd", "adamw+ema"])
def test_the_final_scores_are_those_of_the_best_epoch(
    make_run: MakeRun, toy_data: Data, context: RunContext, name: str
) -> None:
    run = make_run(name, 1, settings=WILD, model="noisy", epochs=8, early_stopping=True)
    outcome = train_on(run, toy_data, context)
    plain = replace(run, run_settings=replace(run.run_settings, early_stopping=False))
    last = train_on(plain, toy_data, replace(context, out=context.out / "plain"))
    assert [replace(each, seconds=0) for each in outcome.curve] == [
        replace(each, seconds=0) for each in last.curve
    ]
    chosen = outcome.curve[best(outcome.curve)]
    assert best(outcome.curve) < 7
    assert outcome.final.validation_score == chosen.validation_score
    assert outcome.final.validation_loss == pytest.approx(chosen.validation_loss, abs=1e-6)
    assert last.final.validation_loss == pytest.approx(last.curve[-1].validation_loss, abs=1e-6)
    # A run of so many epochs with a constant lr ends with the same weights.
    short = make_run(name, 1, settings=WILD, model="noisy", epochs=best(outcome.curve) + 1)
    if name == "sgd":
        ended = train_on(short, toy_data, replace(context, out=context.out / "short"))
        assert ended.final == outcome.final


def test_the_optimizers_state_is_that_of_the_best_epoch_too(
    make_run: MakeRun, toy_data: Data, context: RunContext
) -> None:
    wild = {"settings": WILD, "model": "noisy", "curvature": "full"}
    run = make_run("adamw", 1, epochs=8, early_stopping=True, **wild)
    outcome = train_on(run, toy_data, context)
    assert best(outcome.curve) < 7
    # A run of so many epochs with a constant lr ends there.
    short = make_run("adamw", 1, epochs=best(outcome.curve) + 1, **wild)
    ended = train_on(short, toy_data, context)
    assert outcome.curvature == ended.curvature
    kept = [
        checkpoint.load(checkpoint.checkpoint_path(context.out, each), torch.device("cpu"))
        for each in (run, short)
    ]
    states = [each["optimizer_state"]["state"] for each in kept]
    assert states[0].keys() == states[1].keys()
    for key, state in states[0].items():
        assert all(torch.equal(state[name], states[1][key][name]) for name in state)


def test_a_killed_run_goes_on_to_the_same_best_epoch(
    make_run: MakeRun, toy_data: Data, context: RunContext
) -> None:
    run = make_run("adamw", 1, settings=WILD, model="noisy", epochs=8, early_stopping=True)
    whole = train_on(run, toy_data, replace(context, out=context.out / "whole"))
    assert best(whole.curve) < 6
    for epoch in (2, 6):
        with pytest.raises(KillError):
            train_on(run, toy_data, context, killed_after(epoch, []))
    assert numbers(train_on(run, toy_data, context)) == numbers(whole)
    kept = [
        checkpoint.load(checkpoint.checkpoint_path(out, run), torch.device("cpu"))["model"]
        for out in (context.out, context.out / "whole")
    ]
    assert all(torch.equal(kept[0][key], kept[1][key]) for key in kept[0])


def test_streams_are_refused(context: RunContext) -> None:
    options = StudyOptions(["sgd"], early_stopping=True, samples=20, epochs=5, scale="small")
    with pytest.raises(ValueError, match="early-stopping is not for split-mnist"):
        plan_study("split-mnist", options, USUAL, context)
