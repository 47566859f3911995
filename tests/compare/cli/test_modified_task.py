"""A task with modifiers through all commands: compared, exported, continued, profiled, refused."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.command_line import Result, run_steppe
from helpers.training_runs import measure_little
from steppe.compare.execution.study_registry import read_study, save_study
from steppe.compare.execution.study_storage import open_storage
from steppe.compare.execution.trial_queue import TrialQueue
from steppe.compare.execution.worker import work
from steppe.compare.planning.options import StudyOptions
from steppe.compare.planning.presets import USUAL
from steppe.compare.planning.study import plan_study
from steppe.compare.records.results import StudyResults
from steppe.compare.training.run import RunContext

pytestmark = pytest.mark.thorough

NAME = "digits+few250+noise40"
SHORT = ("--optimizers", "adamw,sgd", "--budget", 1, "--trials", 3, "--epochs", 8)
FIXED = (*SHORT, "--lr", 0.01, "--weight-decay", 0, "--workers", 1)


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Result]:
    """Run the command with workers that train in this process."""

    def train_here(pool: Any, console: object, count: int) -> int:
        work(pool._queue.storage, pool._queue.study, pool._context)
        return 0

    monkeypatch.setattr("steppe.compare.cli.run_study.WorkerPool.run", train_here)
    monkeypatch.chdir(tmp_path)
    measure_little(monkeypatch, "digits")
    return lambda *arguments: run_steppe("compare", *arguments)


def came_of(results: StudyResults) -> list[tuple[object, ...]]:
    return [(t.optimizer, t.phase, t.number, t.outcome.final) for t in results.trials if t.outcome]


def test_a_modified_task_is_compared_exported_and_continued(
    compare: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = compare("digits+noise40+few250", *FIXED)
    assert done.exit_code == 0, done.output
    out = tmp_path / "results" / NAME
    here = read_study(str(out))
    assert here.complete
    assert here.task == NAME
    assert here.name.startswith(f"{NAME}-")
    assert (here.setup["samples"], here.setup["train_samples"]) == (250, 250)
    assert NAME in (out / "report.html").read_text()
    assert all(path.name.startswith(f"{NAME}-") for path in (out / "checkpoints").iterdir())
    # Of the labels to validate on at most six tenths can be predicted; those to test on are clean.
    finals = [trial.outcome.final for trial in here.trials if trial.optimizer == "adamw"]
    assert all(final.test_score > final.validation_score + 0.1 for final in finals)
    exported = tmp_path / "study.json"
    assert run_steppe("report", out, "--json", exported).exit_code == 0
    again = compare("--continue", exported, "--out-dir", tmp_path / "there", "--workers", 1)
    assert again.exit_code == 0, again.output
    there = read_study(str(tmp_path / "there"))
    assert (there.name, came_of(there)) == (here.name, came_of(here))
    kept = next((out / "checkpoints").iterdir())
    card = run_steppe("profile", kept, "--task", "digits+noise40+few250", "--samples", 8)
    assert card.exit_code == 0, card.output
    other = run_steppe("profile", kept, "--task", "digits")
    assert other.exit_code == 2
    assert f"was trained on {NAME}, not on digits" in other.stderr


OWN = """\
import torch
from torch import nn
from steppe.compare import CurvatureSettings, Task

x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
task = Task(
    name="signs", model=lambda: nn.Linear(3, 2), train=(x, (x.sum(1) > 0).long()), validation=0.2,
    test=0.2, loss=nn.functional.cross_entropy, epochs=1, batch_size=8,
    curvature=CurvatureSettings(samples=2, tol=0.1, max_products=12, often=False, full=False),
)
"""


def test_workers_rebuild_an_own_task_with_its_modifiers(
    compare: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "own_modified.py").write_text(OWN)
    options = StudyOptions(["sgd"], budget=1, trials=3, lr=0.1)
    name = f"{tmp_path}/own_modified.py:task+noise40"
    storage = open_storage(str(tmp_path / "storage"), create=True)
    TrialQueue(storage, save_study(storage, plan_study(name, options, USUAL, RunContext(tmp_path))))
    bare = run_steppe("worker", "--storage", tmp_path / "storage", "--task", "own_modified.py:task")
    assert bare.exit_code == 2
    assert "own_modified.py:task is the task 'signs', not 'signs+noise40'" in bare.stderr
    found = run_steppe("worker", "--storage", tmp_path / "storage")
    assert found.exit_code == 0, found.output
    study = read_study(str(tmp_path / "storage"))
    assert study.complete
    exported = tmp_path / "own.json"
    study.save(exported)
    named = ("own_modified.py:task+noise40", "--continue", exported, "--workers", 1)
    done = compare(*named)
    assert done.exit_code == 0, done.output
    assert came_of(read_study(str(tmp_path / "results" / "own_modified+noise40"))) == came_of(study)
    sys.modules.pop("own_modified", None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("digits+nosie40",), "did you mean noise40? There are batch1024, few250, long4, noise40"),
        (("digits+noise40+noise20",), "noise must be given once, got +noise40 and +noise20"),
        (("digits+noise100",), "noise must be a percentage above 0 and below 100"),
        (
            ("digits+few250", "--samples", 9),
            "--samples 9 and +few250 of digits+few250 set the same",
        ),
        (("digits+few5000",), "samples must be between 2 and the 1006 training samples, got 5000"),
    ],
)
def test_refusals_are_one_line_and_leave_nothing(
    compare: Callable[..., Result], tmp_path: Path, arguments: tuple[object, ...], message: str
) -> None:
    refused = compare(*arguments)
    assert refused.exit_code == 2
    assert message in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert not any(tmp_path.iterdir())


def test_the_help_mentions_them() -> None:
    shown = " ".join(run_steppe("compare", "--help").output.split())
    for example in ("+noise40", "+few250", "+batch1024", "+long4"):
        assert example in shown
