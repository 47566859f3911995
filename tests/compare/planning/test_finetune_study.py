"""The task finetune in a study: planned, trained, killed and resumed, on a tiny model."""

import math
import pickle
import signal
from dataclasses import astuple, replace
from pathlib import Path

import pytest
import torch

from helpers.tiny_llama import LINES, save_tiny_llama
from helpers.warm_python import start
from steppe._shared.recipes import find_recipe
from steppe.compare.models import pretrained
from steppe.compare.planning.presets import usual_for
from steppe.compare.planning.study import PlannedStudy, StudyOptions, plan_study
from steppe.compare.records.results import POOL, Outcome, StudyPlan
from steppe.compare.tasks.source import find_task
from steppe.compare.tasks.task import LoadedTask
from steppe.compare.training import checkpoint
from steppe.compare.training.run import Run, RunContext
from steppe.compare.training.train import train

pytestmark = pytest.mark.thorough

LENGTH = 7
PATIENCE_S = 240

KILLED = """
import os, pickle, signal, sys
from pathlib import Path
from steppe.compare.tasks.source import find_task
from steppe.compare.training.train import train
run, context = pickle.loads(Path(sys.argv[1]).read_bytes())
def on_epoch(number, epoch):
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
asked = {**run.run_settings.options, "data": context.data}
train(run, find_task("finetune").task(asked).load(), context, on_epoch)
"""


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for part, repeats in {"train": 20, "validation": 6, "test": 4}.items():
        (folder / f"{part}.txt").write_text("\n".join(LINES * repeats))
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(params=["", "+lora"], ids=["full", "lora"])
def study(request: pytest.FixtureRequest, llama: Path, text: Path, tmp_path: Path) -> PlannedStudy:
    options = StudyOptions(
        ["adamw", "dualadam", "adamcm"],
        "small",
        model=f"{llama}{request.param}",
        seq_length=LENGTH,
        samples=20,
    )
    return plan_study(
        "finetune", options, usual_for("finetune"), RunContext(tmp_path / "plan", data=text)
    )


def run_of(study: PlannedStudy, name: str = "dualadam") -> Run:
    contender = next(each for each in study.contenders if each.name == name)
    return Run(study.setup, find_recipe(name), contender.defaults, seed=0, curvature="full")


def loaded(study: PlannedStudy, text: Path) -> LoadedTask:
    return find_task("finetune").task({**study.setup.options, "data": text}).load()


def timeless(outcome: Outcome) -> tuple[object, ...]:
    """Return all of an outcome that does not depend on how fast it was."""
    curve = tuple(replace(epoch, seconds=0.0) for epoch in outcome.curve)
    return astuple(
        replace(outcome, curve=curve, costs=replace(outcome.costs, step_ms=0, seconds=0))
    )


def test_only_lr_is_searched_and_everybody_decays_alike(study: PlannedStudy) -> None:
    assert study.setup.precision == "bf16"
    assert replace(study.plan, searched="") == StudyPlan(4, 24, family=("adamcm", "dualadam"))
    names = [each.name for each in study.contenders]
    assert names == ["adamw", "adam+warmup", "dualadam", "adamw+beta1", "adamcm"]
    for each in study.contenders:
        assert each.space == {"lr": {"low": 1e-5, "high": 1e-2, "log": True}}
        assert (each.defaults["lr"], each.defaults["weight_decay"]) == (1e-3, 0.01)
        tried = {study.settings(each, POOL, number)["lr"] for number in range(24)}
        assert len(tried) == 24


def test_the_losses_are_those_of_transformers(
    study: PlannedStudy, text: Path, tmp_path: Path
) -> None:
    """Weights come back from the checkpoint, the loss from transformers' own ``labels=``."""
    context = RunContext(tmp_path / "out", data=text)
    data = loaded(study, text).data
    run = run_of(replace(study, setup=replace(study.setup, precision="no")))
    outcome = train(run, loaded(study, text), context)
    found = pretrained.load_causal_model(study.setup.model)
    content = checkpoint.load(checkpoint.checkpoint_path(context.out, run), torch.device("cpu"))
    found.load_state_dict(content["model"])
    assert content["length"] == LENGTH
    for part, loss in (
        (data.train, outcome.final.train_loss),
        (data.validation, outcome.final.validation_loss),
        (data.test, outcome.final.test_loss),
    ):
        # transformers shifts by itself: it is given each block and the token after it.
        tokens = torch.cat([part.inputs, part.targets[:, -1:]], dim=1)
        with torch.no_grad():
            expected = found.model(input_ids=tokens, labels=tokens).loss
        assert loss == pytest.approx(float(expected), rel=1e-5)
    assert outcome.final.test_score == pytest.approx(math.exp(outcome.final.test_loss))
    assert outcome.curve[-1].train_loss < outcome.curve[0].train_loss
    assert abs(outcome.curvature.largest) > 0
    assert math.isnan(outcome.curvature.trace)


def test_a_killed_run_goes_on_to_the_same_numbers(
    study: PlannedStudy, text: Path, tmp_path: Path
) -> None:
    run, task = run_of(study, "adamcm"), loaded(study, text)
    whole = train(run, task, RunContext(tmp_path / "whole", data=text))
    context = RunContext(tmp_path / "killed", data=text)
    (tmp_path / "killed.py").write_text(KILLED)
    (tmp_path / "run").write_bytes(pickle.dumps((run, context)))
    killed = start(tmp_path / "killed.py", tmp_path / "run")
    printed = killed.wait(PATIENCE_S)
    assert killed.returncode == -signal.SIGKILL, printed
    assert checkpoint.progress_path(context.out, run).is_file()
    epochs: list[int] = []
    resumed = train(run, task, context, lambda number, epoch: epochs.append(number))
    assert epochs == [2]
    assert str(timeless(resumed)) == str(timeless(whole))
