"""Robustness measured from kept checkpoints is what was measured while training."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from steppe.compare.execution import kept_checkpoints
from steppe.compare.execution.kept_checkpoints import measure_checkpoints
from steppe.compare.execution.study_registry import read_study
from steppe.compare.planning.continuation import continue_study
from steppe.compare.python.run import run
from steppe.compare.records.results import StudyResults
from steppe.compare.tasks.makers import TaskMaker
from steppe.compare.training import checkpoint
from steppe.compare.training.run import RunContext


def trained(out: Path, **options: Any) -> StudyResults:
    settings = {"budget": 1, "trials": 6, "checkpoints": "all", **options}
    run("toy", ["sgd", "adamw+ema"], out_dir=out, **settings)
    return read_study(str(out))


@pytest.fixture
def kept(toy_task: TaskMaker, tmp_path: Path) -> StudyResults:
    return trained(tmp_path / "kept")


def test_checkpoints_give_what_training_measures(kept: StudyResults, tmp_path: Path) -> None:
    measured = measure_checkpoints(kept, RunContext(tmp_path / "kept"))
    while_training = trained(tmp_path / "whole", robustness=True)
    pairs = list(zip(measured.trials, while_training.trials, strict=True))
    assert len(pairs) == 24
    for found, expected in pairs:
        assert (found.optimizer, found.seed) == (expected.optimizer, expected.seed)
        assert found.outcome.robustness == expected.outcome.robustness
        assert {"clean", "2 bits absmax", "weight noise 0.5", "blur 3", "kurtosis"} <= set(
            found.outcome.robustness
        )
        clean = found.outcome.robustness["clean"]
        assert clean.test_score == found.outcome.final.test_score
        assert clean.validation_loss == pytest.approx(found.outcome.final.validation_loss, rel=1e-5)
    assert measured.setup["robustness"]
    assert replace(measured, setup={}, trials=()) == replace(kept, setup={}, trials=())


def test_what_was_measured_is_kept_and_goes_on_after_a_kill(
    kept: StudyResults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = measure_checkpoints(kept, RunContext(tmp_path / "kept"))
    files = sorted((tmp_path / "kept" / "robustness").iterdir())
    assert len(files) == 24
    # As a kill would leave it: some are missing, one is damaged, one is another checkpoint's.
    for path in files[:3]:
        path.unlink()
    files[3].write_text("{")
    files[4].write_text(json.dumps({"identity": "other", "scores": {}}))
    measured = []
    original = kept_checkpoints.robustness_of

    def counted(*arguments: Any) -> Any:
        measured.append(1)
        return original(*arguments)

    monkeypatch.setattr(kept_checkpoints, "robustness_of", counted)
    assert measure_checkpoints(kept, RunContext(tmp_path / "kept")) == whole
    assert len(measured) == 5


def test_a_checkpoint_that_is_not_the_trials_is_refused(kept: StudyResults, tmp_path: Path) -> None:
    path = min((tmp_path / "kept" / "checkpoints").glob("*sgd-pool*"))
    content = checkpoint.read(path, torch.device("cpu"))
    content["model"] = {name: -3 * value for name, value in content["model"].items()}
    checkpoint.write(path, content)
    with pytest.raises(ValueError, match=r"is not what sgd, trial . ended with: its validation"):
        measure_checkpoints(kept, RunContext(tmp_path / "kept"))


def test_studies_that_share_a_directory_have_their_own_checkpoints(
    toy_task: TaskMaker, tmp_path: Path
) -> None:
    studies = [
        run("toy", ["sgd"], out_dir=tmp_path, budget=1, trials=3, checkpoints="all", **how).results
        for how in ({}, {"epochs": 1})
    ]
    for study in studies:
        for trial in measure_checkpoints(study, RunContext(tmp_path)).trials:
            clean = trial.outcome.robustness["clean"]
            assert clean.test_loss == pytest.approx(trial.outcome.final.test_loss, rel=1e-5)


def test_missing_checkpoints_are_named(kept: StudyResults, tmp_path: Path) -> None:
    for path in (tmp_path / "kept" / "checkpoints").glob("*sgd-pool*"):
        path.unlink()
    with pytest.raises(ValueError, match=r"6 of 12 trials have no checkpoint.*sgd, trial 0: run"):
        measure_checkpoints(kept, RunContext(tmp_path / "kept"))


def test_a_study_that_measured_while_training_is_refused(
    toy_task: TaskMaker, tmp_path: Path
) -> None:
    study = trained(tmp_path / "out", robustness=True)
    with pytest.raises(ValueError, match="measured its runs as it trained"):
        measure_checkpoints(study, RunContext(tmp_path / "out"))


def test_a_file_of_what_was_measured_afterwards_is_not_gone_on_with(
    kept: StudyResults, tmp_path: Path
) -> None:
    place = RunContext(tmp_path / "kept")
    with pytest.raises(ValueError, match="go on from one that steppe report --json writes without"):
        continue_study(measure_checkpoints(kept, place), place)
