"""What is logged besides, as its reader finds it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from helpers.training_runs import train_on
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


@pytest.fixture
def wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, dict[str, float]]]:
    """Weights & Biases without its server; the runs that have ended, and their last values."""
    package = pytest.importorskip("wandb")
    ended = []
    start = package.init

    def init(**options: Any) -> Any:
        run = start(mode="offline", dir=str(tmp_path), **options)
        finish = run.finish

        def finish_and_note() -> None:
            run.log({}, commit=True)
            ended.append((run, dict(run.summary)))
            finish()

        run.finish = finish_and_note
        return run

    monkeypatch.setattr(package, "init", init)
    return ended


def numbers_of(end: Any) -> dict[str, float]:
    names = ("train_loss", "train_score", "validation_loss", "validation_score")
    return {name: getattr(end, name) for name in names}


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")
def test_wandb_gets_a_project_for_the_task_and_a_name_for_the_run(
    make_run, toy_data, context: RunContext, wandb: list[tuple[Any, Any]]
) -> None:
    run = make_run("adamw", 3)
    outcome = train_on(run, toy_data, RunContext(context.out, track="wandb"))
    ((shown, summary),) = wandb
    assert (shown.project, shown.name) == ("toy", run.label)
    assert dict(shown.config) == {"optimizer": "adamw", "seed": 3, **run.settings}
    assert_no_test(summary)
    assert summary["_step"] == len(outcome.curve)
    assert {name: summary[name] for name in numbers_of(outcome.final)} == numbers_of(outcome.final)
    # What was not measured is not logged.
    assert all(value == value for value in summary.values())


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")
def test_mlflow_gets_an_experiment_for_the_task_and_a_name_for_the_run(
    make_run, toy_data, context: RunContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    address = f"sqlite:///{tmp_path / 'runs.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    run = make_run("adamw", 3)
    outcome = train_on(run, toy_data, RunContext(context.out, track="mlflow"))
    client = mlflow.MlflowClient(address)
    experiment = client.get_experiment_by_name("toy")
    (shown,) = client.search_runs([experiment.experiment_id])
    assert (shown.info.run_name, shown.info.status) == (run.label, "FINISHED")
    assert shown.data.params["optimizer"] == "adamw"
    assert float(shown.data.params["lr"]) == run.settings["lr"]
    assert_no_test(shown.data.metrics)
    assert {name: shown.data.metrics[name] for name in numbers_of(outcome.final)} == numbers_of(
        outcome.final
    )
    losses = client.get_metric_history(shown.info.run_id, "train_loss")
    by_epoch = sorted((each.step, each.value) for each in losses)
    assert by_epoch[:2] == [(n, epoch.train_loss) for n, epoch in enumerate(outcome.curve)]
