"""A study with a second task through all commands: compared, reported, exported, continued."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.command_line import Result, run_steppe
from helpers.training_runs import measure_little
from steppe.compare import find_task, load, run
from steppe.compare.execution.study_registry import read_study
from steppe.compare.execution.worker import work
from steppe.compare.records.results import StudyResults

pytestmark = pytest.mark.thorough

SHORT = ("--optimizers", "adamw,sgd", "--budget", 1, "--trials", 3, "--epochs", 2)
FIXED = (*SHORT, "--lr", 0.01, "--weight-decay", 0, "--workers", 1)

OWN = """\
import torch
from torch import nn
from steppe.compare import Task, find_task

digits = find_task("digits").task().load().data
turned = [(part.inputs.flip(-1), part.targets) for part in (digits.train, digits.validation)]
task = Task(
    name="mirrored", model=lambda: nn.Flatten(), train=turned[0], validation=turned[1], test=0.2,
    loss=nn.functional.cross_entropy, batch_size=64,
)
"""


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Result]:
    """Run the command with workers that train in this process, and fine-tune for a few steps."""

    def train_here(pool: Any, console: object, count: int) -> int:
        work(pool._queue.storage, pool._queue.study, pool._context)
        return 0

    monkeypatch.setattr("steppe.compare.cli.run_study.WorkerPool.run", train_here)
    monkeypatch.setattr("steppe.compare.planning.second_task.STEPS", 8)
    monkeypatch.chdir(tmp_path)
    measure_little(monkeypatch, "digits")
    return lambda *arguments: run_steppe("compare", *arguments)


@pytest.fixture
def mirrored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "mirrored.py").write_text(OWN)
    yield "mirrored.py:task"
    sys.modules.pop("mirrored", None)


def came_of(results: StudyResults) -> list[tuple[object, ...]]:
    return [
        (t.optimizer, t.phase, t.number, t.outcome.final, t.outcome.fine_tuning)
        for t in results.trials
        if t.outcome
    ]


def test_a_second_task_through_all_commands(
    compare: Callable[..., Result], tmp_path: Path, mirrored: str
) -> None:
    done = compare("digits", "--then", f"{mirrored}+few500", "--then-loss", 2.25, *FIXED)
    assert done.exit_code == 0, done.output
    assert "Forgetting: digits, where the loss on mirrored.py:task+few500 is 2.25" in " ".join(
        done.output.split()
    )
    out = tmp_path / "results" / "digits"
    here = read_study(str(out))
    assert here.complete
    assert here.setup["then"]["task"] == "mirrored.py:task+few500"
    outcomes = [trial.outcome for trial in here.trials]
    assert all(each and len(each.fine_tuning) == 3 for each in outcomes)
    page = (out / "report.html").read_text()
    assert '<section id="forgetting"' in page
    assert "Each trained model was fine-tuned on mirrored.py:task+few500" in page
    exported = tmp_path / "study.json"
    tables = tmp_path / "tables"
    assert run_steppe("report", out, "--json", exported, "--tables", tables).exit_code == 0
    assert (tables / "forgetting.csv").read_text().startswith("optimizer,test loss,test loss low")
    again = compare("--continue", exported, "--out-dir", tmp_path / "there", "--workers", 1)
    assert again.exit_code == 0, again.output
    there = read_study(str(tmp_path / "there"))
    assert (there.name, came_of(there)) == (here.name, came_of(here))
    # Without a second task it is another study, of runs with the same results.
    plain = compare("digits", *FIXED, "--out-dir", tmp_path / "plain")
    assert plain.exit_code == 0, plain.output
    alone = read_study(str(tmp_path / "plain"))
    assert alone.name != here.name
    assert [row[:4] for row in came_of(alone)] == [row[:4] for row in came_of(here)]
    assert '<section id="forgetting"' not in (tmp_path / "plain" / "report.html").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--then", "mnist"), "no task is called 'mnist'"),
        (
            ("--then", "mnist-5k"),
            "whose inputs have the shape (1, 8, 8) of digits, got (1, 28, 28)",
        ),
        (("--then", "split-mnist"), "are no streams, got the stream split-mnist"),
        (("--then-loss", 0.5), "then-loss must come with then, got 0.5 alone"),
    ],
)
def test_refusals_are_one_line_and_leave_nothing(
    compare: Callable[..., Result], tmp_path: Path, options: tuple[object, ...], message: str
) -> None:
    refused = compare("digits", *options)
    assert refused.exit_code == 2
    assert message in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert not any(tmp_path.iterdir())


def test_from_python(compare: Callable[..., Result], tmp_path: Path, mirrored: str) -> None:
    short = {"budget": 1, "trials": 3, "epochs": 1, "lr": 0.1, "weight_decay": 0.0}
    with pytest.warns(UserWarning, match="With 3 trials"):
        study = run("digits", ["sgd", "adamw"], then=mirrored, out_dir=tmp_path / "here", **short)
    made = study.table("forgetting")
    assert [name for name, _ in made.rows] == ["sgd", "adamw"]
    saved = load(study.save(tmp_path / "saved.json"))
    assert saved.to_csv(table="forgetting") == study.to_csv(table="forgetting")
    with pytest.raises(TypeError, match="then must be a task's name, got Task"):
        run("digits", ["sgd"], then=find_task("digits").task(), out_dir=tmp_path / "there", **short)
