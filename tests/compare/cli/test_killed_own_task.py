"""A worker that is killed amid a trial of a user's task, beside one that is not."""

import importlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.postgresql_server import KINDS, postgres
from helpers.study_storages import Open, forget, opened
from helpers.warm_python import start
from steppe.compare.execution.study_registry import find_study, save_study
from steppe.compare.execution.trial_queue import TrialQueue
from steppe.compare.planning.presets import USUAL
from steppe.compare.planning.study import StudyOptions, plan_study
from steppe.compare.training.run import RunContext

__all__ = ["opened", "postgres"]

pytestmark = pytest.mark.thorough

PATIENCE_S = 240

# Its model draws random numbers, and its loss can kill the process that computes it.
OWN = """
import os
import signal
import torch
from torch import nn
from steppe.compare import CurvatureSettings, Task

x = torch.linspace(-1, 1, 60)[:, None]
losses = 0


def loss(outputs, targets):
    global losses
    losses += outputs.requires_grad
    if losses == int(os.environ.get("KILLED_AT", "0")):
        os.kill(os.getpid(), signal.SIGKILL)
    return nn.functional.mse_loss(outputs, targets)


task = Task(
    name="a curve",
    model=lambda: nn.Sequential(nn.Linear(1, 8), nn.Dropout(0.2), nn.Tanh(), nn.Linear(8, 1)),
    train=(x, x.sin()), validation=0.2, test=0.2, loss=loss, epochs=4, batch_size=6,
    curvature=CurvatureSettings(samples=2, tol=0.1, max_products=12, often=False, full=False),
)
"""
FIXED = {"lr": 0.1, "weight_decay": 0.0, "budget": 1, "trials": 3}


@pytest.fixture(params=KINDS)
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return str(tmp_path / "storage")
    return request.getfixturevalue("postgres").database()  # type: ignore[no-any-return]


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "curve.py").write_text(OWN)
    yield f"{tmp_path / 'curve.py'}:task"
    sys.modules.pop("curve", None)
    importlib.invalidate_caches()


def planned(task: str, storage: Any, out: Path) -> None:
    study = plan_study(task, StudyOptions(["adamw", "sgd"], **FIXED), USUAL, RunContext(out))
    TrialQueue(storage, save_study(storage, study))


def numbers(storage: Any) -> list[tuple[object, ...]]:
    results = TrialQueue(storage, find_study(storage), plan=False).results()
    assert results.complete
    return sorted(
        (each.optimizer, each.phase, each.number, each.seed, str(each.outcome.final))
        for each in results.trials
        if each.outcome
    )


def worked(where: str, out: Path, **environment: str) -> int | None:
    """Run a worker as a process of its own; return how it ended."""
    script = out.with_suffix(".py")
    script.write_text("from steppe.cli import main; main()")
    process = start(script, "worker", "--storage", where, "--out-dir", out, **environment)
    process.wait(PATIENCE_S)
    return process.returncode


def test_another_worker_goes_on_to_the_same_numbers(
    task: str, where: str, tmp_path: Path, opened: Open
) -> None:
    whole, killed = (opened(each, create=True) for each in (str(tmp_path / "whole"), where))
    planned(task, whole, tmp_path / "one")
    planned(task, killed, tmp_path / "two")
    assert worked(str(tmp_path / "whole"), tmp_path / "one") == 0
    # Amid the third epoch of the second trial.
    assert worked(where, tmp_path / "two", KILLED_AT="38") == -signal.SIGKILL
    (study,) = killed.get_all_studies()
    trials = killed.get_all_trials(study._study_id)
    (taken,) = [each._trial_id for each in trials if each.state.name == "RUNNING"]
    assert [each.state.name for each in trials].count("COMPLETE") == 1
    forget(killed, taken)
    assert worked(where, tmp_path / "two") == 0
    assert numbers(killed) == numbers(whole)
