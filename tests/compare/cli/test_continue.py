"""``steppe compare --continue FILE``: a study goes on elsewhere, or says why it cannot."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.command_line import Result, run_steppe
from steppe.compare.execution.study_registry import find_study, read_study, save_study
from steppe.compare.execution.study_storage import open_storage
from steppe.compare.execution.trial_queue import TrialQueue
from steppe.compare.execution.worker import work
from steppe.compare.planning.options import StudyOptions
from steppe.compare.planning.presets import USUAL
from steppe.compare.planning.study import plan_study
from steppe.compare.records.results import StudyResults
from steppe.compare.tasks.makers import Task
from steppe.compare.training.run import RunContext

pytestmark = pytest.mark.thorough

SEED = 9


@pytest.fixture
def half(toy_task: Task, tmp_path: Path) -> Path:
    """Export a study of which 4 of 12 trials have ended."""
    context = RunContext(tmp_path / "here")
    options = StudyOptions(["adamw", "rprop"], budget=1, trials=3, lr=0.1, study_seed=SEED)
    storage = open_storage(str(tmp_path / "here"), create=True)
    study = save_study(storage, plan_study("toy", options, USUAL, context))
    TrialQueue(storage, study)
    ended: list[str] = []

    def stop(assignment: object, how: str) -> None:
        ended.append(how)
        if len(ended) == 4:
            raise RecursionError

    with pytest.raises(RecursionError):
        work(storage, study, context, stop)
    path = tmp_path / "half.json"
    TrialQueue(storage, study, plan=False).results().save(path)
    return path


@pytest.fixture
def go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run the command with workers that train in this process, and without a page."""

    def train_here(pool: Any, console: object, count: int) -> int:
        work(pool._queue.storage, pool._queue.study, pool._context)
        return 0

    monkeypatch.setattr("steppe.compare.cli.run_study.WorkerPool.run", train_here)
    monkeypatch.setattr("steppe.compare.cli.run_study.publish", lambda *_, **__: None)
    monkeypatch.chdir(tmp_path)

    def run(path: Path, *options: object) -> Result:
        return run_steppe("compare", "--continue", path, *options)

    return run


def came_of(results: StudyResults) -> list[tuple[object, ...]]:
    return [
        (t.optimizer, t.phase, t.number, t.seed, t.settings, t.outcome.final, t.outcome.samples)
        for t in results.trials
        if t.outcome
    ]


def test_it_goes_on_in_a_directory_of_its_own_with_the_same_numbers(
    half: Path, go_on: Callable[..., Result], tmp_path: Path
) -> None:
    done = go_on(half, "--workers", 1)
    assert done.exit_code == 0, done.output
    there = read_study(str(tmp_path / "results" / f"toy-{SEED}"))
    assert there.complete
    storage = open_storage(str(tmp_path / "here"))
    study = find_study(storage)
    assert work(storage, study, RunContext(tmp_path / "here")) == 12 - 4
    here = read_study(str(tmp_path / "here"))
    assert came_of(there) == came_of(here)
    assert len(came_of(there)) == 12
    assert (there.name, there.plan, there.command) == (here.name, here.plan, here.command)
    # Once more there is nothing left to do.
    again = go_on(half)
    assert again.exit_code == 0, again.output
    assert came_of(read_study(str(tmp_path / "results" / f"toy-{SEED}"))) == came_of(there)


def test_the_file_alone_says_what_is_compared(
    half: Path, go_on: Callable[..., Result], tmp_path: Path
) -> None:
    refused = go_on(half, "toy")
    assert refused.exit_code == 2
    assert refused.stderr == "steppe: continue takes the task from its file: leave it out\n"
    for options in (
        ("--preset", "dualadam"),
        ("--trials", 24),
        ("--study-seed", SEED + 1),
        ("--optimizers", "adamw,rprop"),
        ("--lr", 0.1),
        ("--epochs", 2),
        ("--note", "more"),
    ):
        refused = go_on(half, *options)
        assert refused.exit_code == 2, options
        assert refused.stderr == (
            "steppe: continue takes the study from its file: leave its options out\n"
        ), options
    assert not (tmp_path / "results").exists()


def with_seed(content: dict[str, Any]) -> None:
    """Give the first trial of all optimizers another seed."""
    for trial in content["trials"]:
        if trial["number"] == 0:
            trial["seed"] = 7


EDITS: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (with_seed, "seed of adamw, trial 0 must be "),
    (
        lambda x: x["trials"][1]["settings"].update(weight_decay=0.5),
        "settings of adamw, trial 1 must be ",
    ),
    (
        lambda x: x["versions"].update(source="0123"),
        "this is not the code that the study was planned with: source ",
    ),
    (lambda x: x["plan"].update(study_seed=1), "name must be toy-"),
    (lambda x: x["plan"].update(trials=2), "plan.trials must be at least 3"),
    (lambda x: x.update(task="../elsewhere"), "no task is called '../elsewhere'"),
    (lambda x: x.clear(), "is no study saved by steppe report --json"),
]


def test_a_file_that_was_edited_is_refused_before_anything_is_written(
    half: Path, go_on: Callable[..., Result], tmp_path: Path
) -> None:
    before, whole = sorted(tmp_path.rglob("*")), half.read_text()
    for edit, message in EDITS:
        content = json.loads(whole)
        edit(content)
        half.write_text(json.dumps(content))
        refused = go_on(half)
        assert refused.exit_code == 2, message
        (line,) = refused.stderr.splitlines()
        assert line.startswith("steppe: ")
        assert message in line
        assert sorted(tmp_path.rglob("*")) == before, message


def test_a_file_that_is_not_there_is_named(go_on: Callable[..., Result], tmp_path: Path) -> None:
    refused = go_on(tmp_path / "none.json")
    assert refused.exit_code == 2
    assert "none.json" in refused.stderr
    assert not (tmp_path / "results").exists()
