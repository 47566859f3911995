"""What is logged besides, as its reader finds it."""

import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from helpers.training_runs import train_on
from steppe.compare.training.accelerator import make_accelerator
from steppe.compare.training.run import RunContext

pytest.importorskip("tensorboard")


def scalars(directory: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory))
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def test_tensorboard_has_every_epoch_of_every_run(make_run, toy_data, tmp_path: Path) -> None:
    context = RunContext(tmp_path, track="tensorboard")
    runs = [make_run("adamw", 0), make_run("sgd", 1)]
    outcomes = [train_on(run, toy_data, context) for run in runs]
    for run, outcome in zip(runs, outcomes, strict=True):
        found = scalars(tmp_path / "logs" / run.label)
        for name in ("train_loss", "validation_loss", "validation_score", "lr"):
            expected = [getattr(epoch, name) for epoch in outcome.curve]
            at_the_end = [outcome.final.train_loss] if name == "train_loss" else []
            if name.startswith("validation"):
                at_the_end = [getattr(outcome.final, name)]
            values = [value for _, value in found[name]]
            assert values == pytest.approx(expected + at_the_end, rel=1e-6)
            assert [step for step, _ in found[name]][:2] == [0, 1]
        assert_no_test(found)
    assert {path.name for path in (tmp_path / "logs").iterdir()} == {run.label for run in runs}


def assert_no_test(logged: Mapping[str, object]) -> None:
    """Nobody is to see test results before a study is complete."""
    assert "validation_score" in logged
    assert not [name for name in logged if "test" in name]


class Wandb:
    """Stands for the package: keeps what it is called with."""

    def __init__(self) -> None:
        self.config = SimpleNamespace(update=lambda values, **_: self.configs.append(values))
        self.started: list[dict[str, Any]] = []
        self.configs: list[dict[str, Any]] = []
        self.logged: list[tuple[int | None, dict[str, Any]]] = []
        self.finished = 0

    def init(self, **options: Any) -> "Wandb":
        self.started.append(options)
        return self

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished += 1


def test_wandb_gets_a_project_for_the_task_and_a_name_for_the_run(
    make_run, toy_data, context: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through Accelerate's own tracker, with the package replaced."""
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setattr("accelerate.tracking.is_wandb_available", lambda: True)
    from accelerate import tracking
    from accelerate.utils import LoggerType

    monkeypatch.setattr(tracking, "get_available_trackers", lambda: [LoggerType.WANDB])
    run = make_run("adamw", 3)
    outcome = train_on(run, toy_data, RunContext(context.out, track="wandb"))
    for _, values in wandb.logged:
        assert_no_test(values)
        # What was not measured is not logged.
        assert all(value == value for value in values.values())
    assert wandb.started == [{"project": "toy", "name": run.label}]
    assert wandb.configs == [{"optimizer": "adamw", "seed": 3, **run.settings}]
    epochs = [(step, values["train_loss"]) for step, values in wandb.logged[:2]]
    assert epochs == [(n, epoch.train_loss) for n, epoch in enumerate(outcome.curve)]
    end = outcome.final
    assert wandb.logged[2][1] == {
        name: getattr(end, name)
        for name in ("train_loss", "train_score", "validation_loss", "validation_score")
    }
    assert wandb.finished == 1


class MLflow:
    """Stands for the package: keeps what it is called with."""

    def __init__(self) -> None:
        self.experiments: list[dict[str, Any]] = []
        self.runs: list[dict[str, Any]] = []
        self.params: dict[str, Any] = {}
        validation = SimpleNamespace(MAX_PARAM_VAL_LENGTH=500, MAX_PARAMS_TAGS_PER_BATCH=100)
        self.utils = SimpleNamespace(validation=validation)

    def search_experiments(self, **_: Any) -> list[Any]:
        return []

    def create_experiment(self, **options: Any) -> str:
        self.experiments.append(options)
        return "7"

    def start_run(self, **options: Any) -> None:
        self.runs.append(options)

    def log_params(self, values: dict[str, Any]) -> None:
        self.params.update(values)


def test_mlflow_gets_an_experiment_for_the_task_and_a_name_for_the_run(
    make_run, context: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = MLflow()
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    from accelerate import tracking
    from accelerate.utils import LoggerType

    monkeypatch.setattr(tracking, "get_available_trackers", lambda: [LoggerType.MLFLOW])
    run = make_run("adamw", 3)
    make_accelerator(run, RunContext(context.out, track="mlflow"))
    assert [each["name"] for each in mlflow.experiments] == ["toy"]
    assert [(each["experiment_id"], each["run_name"]) for each in mlflow.runs] == [("7", run.label)]
    assert mlflow.params["optimizer"] == "adamw"
    assert mlflow.params["lr"] == run.settings["lr"]
