"""A study in the processes of a launch: the command trains each trial in all of them, once."""

import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from helpers.command_line import run_steppe
from steppe.compare.execution.study_registry import find_study
from steppe.compare.execution.study_storage import open_storage
from steppe.compare.execution.trial_queue import TrialQueue
from steppe.compare.execution.worker import work
from steppe.compare.records.json_format import to_json
from steppe.compare.records.results import StudyResults
from steppe.compare.training.run import RunContext

pytestmark = pytest.mark.thorough

ACCELERATE = (
    "accelerate.commands.launch",  # the module behind ``accelerate launch``
    *("--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--main_process_port", "0"),
    *("--mixed_precision", "no", "--dynamo_backend", "no"),
)
STUDY = (
    *("compare", "digits", "--samples", "64", "--batch-size", "16", "--epochs", "2"),
    *("--optimizers", "adamw+beta1", "--budget", "1", "--trials", "3"),
    *("--lr", "0.01", "--weight-decay", "0"),
)


def launch(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def contents(results: StudyResults) -> list[dict[str, Any]]:
    """Give each trial as it stands in the storage, but for what it took."""
    found = []
    for trial in results.trials:
        assert trial.outcome is not None, trial.error
        outcome = to_json(trial.outcome)
        costs = {"step_ms", "seconds", "state_bytes", "peak_bytes", "gradients"}
        assert outcome.pop("costs").keys() == costs
        # Packed as text, where one bit more or less is another text.
        del outcome["samples"]
        del outcome["curve"]["seconds"]
        found.append(asdict(replace(trial, outcome=None, where="")) | {"outcome": outcome})
    return found


def test_a_launched_study_is_the_study_of_one_process(tmp_path: Path) -> None:
    out = tmp_path / "two"
    launched = launch(*ACCELERATE, "-m", "steppe", *STUDY, "--out-dir", str(out))
    assert launched.returncode == 0, launched.stderr

    storage = open_storage(str(out))
    study = find_study(storage)
    found = TrialQueue(storage, study, plan=False).results()
    alone = open_storage(str(tmp_path / "one"), create=True)
    assert work(alone, study, RunContext(tmp_path / "one")) == 9
    expected = TrialQueue(alone, study, plan=False).results()
    for trial, other in zip(contents(found), contents(expected), strict=True):
        assert_near(trial, other)
    assert all(trial.where.startswith("2 × 1 thread of a ") for trial in found.trials)

    said = launched.stdout
    assert "[1/9] " in said
    assert [said.count(f"[{number}/9] ") for number in range(1, 10)] == [1] * 9
    assert said.count("Page: ") == 1
    assert (out / "report.html").is_file()
    assert not list((out / "unfinished").iterdir())
    # Of the runs at recommended settings.
    assert len(list((out / "checkpoints").iterdir())) == 3
    assert not (out / "logs").exists()


def assert_near(found: Any, expected: Any, where: str = "") -> None:
    """Numbers are equal but for the order of sums; the solver stops eigenvalues at 1 %."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected:
            assert_near(found[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), where
        for one, other in zip(found, expected, strict=True):
            assert_near(one, other, where)
    elif isinstance(expected, float):
        rel = 0.02 if ".curvature" in where else 1e-4
        assert found == pytest.approx(expected, rel=rel, nan_ok=True), where
    else:
        assert found == expected, where


def test_workers_are_refused_in_a_launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Launch:
        num_processes, is_main_process = 2, True

    monkeypatch.setattr("steppe.compare.cli.run_study.launched_processes", lambda context: Launch)
    arguments = [*STUDY, "--workers", "2", "--out-dir", str(tmp_path / "out")]
    result = run_steppe(*arguments)
    assert result.exit_code == 2
    assert "workers must be left out in a launch of 2 processes" in result.stderr
    assert not (tmp_path / "out").exists()
