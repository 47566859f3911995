"""A task in a user's file, through all commands: compared, worked on elsewhere, and refused."""

import importlib
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.command_line import Result, run_steppe
from steppe.compare.execution.study_registry import find_study, read_study, save_study
from steppe.compare.execution.study_storage import open_storage
from steppe.compare.execution.trial_queue import TrialQueue
from steppe.compare.execution.worker import work
from steppe.compare.planning.presets import USUAL
from steppe.compare.planning.study import StudyOptions, plan_study
from steppe.compare.training.run import RunContext

pytestmark = pytest.mark.thorough

OWN = """\
import torch
from torch import nn
from steppe.compare import CurvatureSettings, Metric, Task
from own_parts import make_model, SLOPE

x = torch.linspace(-1, 1, 40)[:, None]
little = CurvatureSettings(samples=2, tol=0.1, max_products=12, often=False, full=False)


def task(scale="full"):
    error = Metric(lambda y, t: (y - t).square().mean(1), False, of_mean="root", unit="m")
    return Task(
        name="a line", model=make_model, train=(x, SLOPE * x), validation=0.2, test=0.2,
        loss=nn.functional.mse_loss, metrics={"RMSE": error}, epochs=2, batch_size=8,
        curvature=little,
    )
"""
PARTS = "from torch import nn\nSLOPE = 2\ndef make_model():\n    return nn.Linear(1, 1)\n"
# Nothing is searched: the pools are all.
FIXED = {"lr": 0.1, "weight_decay": 0.0, "budget": 1, "trials": 3}
OPTIONS = [f"--{name.replace('_', '-')}={value}" for name, value in FIXED.items()]


def forget() -> None:
    for name in ("own_line", "own_parts"):
        sys.modules.pop(name, None)
    importlib.invalidate_caches()


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Write the file; what it imports is forgotten at the end."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "work" / "own_line.py"
    path.parent.mkdir()
    path.write_text(OWN)
    (path.parent / "own_parts.py").write_text(PARTS)
    yield path
    forget()


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run the command with workers that train in this process."""

    def train_here(pool: Any, console: object, count: int) -> int:
        work(pool._queue.storage, pool._queue.study, pool._context)
        return 0

    monkeypatch.setattr("steppe.compare.cli.run_study.WorkerPool.run", train_here)
    return lambda *arguments: run_steppe("compare", *arguments)


def test_an_own_task_is_compared_as_others_are(
    own: Path, compare: Callable[..., Result], tmp_path: Path
) -> None:
    done = compare("work/own_line.py:task", "--optimizers", "adamw,sgd", *OPTIONS, "--workers", 1)
    assert done.exit_code == 0, done.output
    assert "RMSE, m" in done.output
    (out,) = (tmp_path / "results").iterdir()
    results = read_study(str(out))
    assert results.complete
    assert (results.task, results.metric.name, results.metric.of_mean) == ("a line", "RMSE", "root")
    for trial in results.trials:
        final = trial.outcome.final
        assert final.test_score == pytest.approx(final.test_loss**0.5, rel=1e-5)
    page = (out / "report.html").read_text()
    assert "a line" in page
    kept = next((out / "checkpoints").iterdir())
    card = run_steppe("profile", kept, "--task", "work/own_line.py:task", "--samples", 4)
    assert card.exit_code == 0, card.output
    assert "λ_max" in card.output
    other = run_steppe("profile", kept, "--task", "digits")
    assert other.exit_code == 2
    assert "was trained on a line, not on digits" in other.stderr


@pytest.fixture
def planned(own: Path, tmp_path: Path) -> Path:
    """Plan a study of it in a storage."""
    place = RunContext(tmp_path / "out")
    study = plan_study(f"{own}:task", StudyOptions(["adamw"], **FIXED), USUAL, place)
    storage = open_storage(str(tmp_path / "storage"), create=True)
    TrialQueue(storage, save_study(storage, study))
    forget()
    return tmp_path / "storage"


def test_workers_find_the_file_where_it_was_planned_or_where_it_is(
    own: Path, planned: Path, tmp_path: Path
) -> None:
    moved = Path(shutil.move(own.parent, tmp_path / "elsewhere")) / own.name
    lost = run_steppe("worker", "--storage", planned)
    assert lost.exit_code == 2
    assert f"{own} is no file" in lost.stderr
    found = run_steppe("worker", "--storage", planned, "--task", f"{moved}:task")
    assert found.exit_code == 0, found.output
    assert read_study(str(planned)).complete


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("own_line.py", "batch_size=8", "batch_size=4"),
        ("own_parts.py", "Linear(1, 1)", "Linear(1, 1, True)"),
        ("own_parts.py", "SLOPE = 2", "SLOPE = 3"),
    ],
)
def test_an_edited_task_is_refused_before_a_trial_is_taken(
    own: Path, planned: Path, name: str, old: str, new: str
) -> None:
    path = own.parent / name
    path.write_text(path.read_text().replace(old, new))
    refused = run_steppe("worker", "--storage", planned)
    assert refused.exit_code == 2
    assert "is not the version of a line that the study was planned with" in refused.stderr
    storage = open_storage(str(planned))
    assert TrialQueue(storage, find_study(storage), plan=False).results().trials == ()


def test_other_data_is_refused(
    own: Path, planned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same code, which reads other samples."""
    monkeypatch.setattr("torch.linspace", lambda *_: torch.arange(40.0) / 40)
    refused = run_steppe("worker", "--storage", planned)
    assert refused.exit_code == 2
    assert "the data of a line here" in refused.stderr


def test_a_mistake_shows_the_users_lines_in_the_terminal(
    own: Path, compare: Callable[..., Result], tmp_path: Path
) -> None:
    own.write_text(OWN.replace("SLOPE * x)", "SLOPE * y)"))
    refused = compare("work/own_line.py:task", *OPTIONS)
    assert refused.exit_code == 2
    message, *lines = refused.stderr.splitlines()
    assert message.startswith("steppe: own_line.py:task cannot be made: NameError: name 'y' is not")
    assert len(lines) == 1
    assert lines[0].startswith(f"  {own}:")
    assert "SLOPE * y" in lines[0]
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("work/own_line.py", "may have several tasks: name one, as work/own_line.py:task"),
        ("work/none.py:task", "none.py is no file"),
        ("work/own_line.py:tusk", "has no task 'tusk'"),
    ],
)
def test_a_name_of_no_task_is_refused(
    own: Path, compare: Callable[..., Result], tmp_path: Path, name: str, message: str
) -> None:
    refused = compare(name, *OPTIONS)
    assert refused.exit_code == 2
    assert message in refused.stderr
    assert not (tmp_path / "results").exists()


def test_a_study_goes_on_from_its_file_with_the_task_named(
    own: Path, planned: Path, compare: Callable[..., Result], tmp_path: Path
) -> None:
    storage = open_storage(str(planned))
    queue = TrialQueue(storage, find_study(storage), plan=False)
    queue.results().save(tmp_path / "half.json")
    unnamed = compare("--continue", tmp_path / "half.json")
    assert unnamed.exit_code == 2
    assert "a line is a task in a file that is not named" in unnamed.stderr
    done = compare(f"{own}:task", "--continue", tmp_path / "half.json", "--out-dir", "there")
    assert done.exit_code == 0, done.output
    assert read_study("there").complete
    wrong = compare("digits", "--continue", tmp_path / "half.json")
    assert wrong.exit_code == 2
