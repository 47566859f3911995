"""Somebody else's study may be damaged; nothing of it is run, and nothing written into it."""

import json
import os
import re
import shutil
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers import synthetic_studies as studies
from helpers.command_line import run_steppe
from helpers.synthetic_studies import outcome
from steppe.compare.execution.study_registry import read_study, save_study
from steppe.compare.execution.study_storage import open_storage
from steppe.compare.execution.trial_queue import TrialQueue
from steppe.compare.planning.study import PlannedStudy
from steppe.compare.records.results import ContenderRecord, MetricDescription, StudyPlan, load
from steppe.compare.training.run import RunSettings

pytestmark = pytest.mark.thorough

HOME_MADE = "home_made_optimizers:Mine"
SOURCE = """
from pathlib import Path
from torch.optim import SGD

Path(__file__).with_name("imported").touch()

class Mine(SGD):
    pass
"""
FACTS = {"train_samples": 64, "validation_samples": 32, "test_samples": 32}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keep a study of an optimizer of somebody's own, which is not there any more."""
    directory = tmp_path_factory.mktemp("kept")
    module = directory / "home_made_optimizers.py"
    module.write_text(SOURCE)
    setup = RunSettings("digits", "mlp", None, "abc", epochs=2, steps_per_epoch=4, batch_size=16)
    contenders = (ContenderRecord("adamw"), ContenderRecord(HOME_MADE))
    plan = StudyPlan(budget=1, trials=3, family=(HOME_MADE,))
    command = "steppe compare digits"
    study = PlannedStudy(setup, plan, contenders, MetricDescription(), facts=FACTS, command=command)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(directory))
        storage = open_storage(str(directory), create=True)
        save_study(storage, study)
        queue = TrialQueue(storage, study)
        scores = iter((0.5, 0.6, 0.7, 0.8, 0.55, 0.65))
        while taken := queue.take():
            queue.finish(taken, outcome(next(scores)), "there")
        storage.engine.dispose()
    del sys.modules["home_made_optimizers"]
    return directory / "study.sqlite"


@pytest.fixture
def theirs(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a directory with the study; what lies beside it could be imported."""
    monkeypatch.syspath_prepend(str(tmp_path))
    directory = tmp_path / "theirs"
    directory.mkdir()
    shutil.copy(kept, directory)
    return directory


def content(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def report(*arguments: object) -> Any:
    result = run_steppe("report", *arguments)
    assert "Traceback" not in result.output
    return result


def test_results_are_shown_of_an_optimizer_that_is_not_here(theirs: Path) -> None:
    results = read_study(str(theirs))
    assert results.complete
    assert [trial.optimizer for trial in results.trials] == ["adamw"] * 3 + [HOME_MADE] * 3


def test_nothing_is_imported_and_nothing_is_written(theirs: Path, tmp_path: Path) -> None:
    (tmp_path / "home_made_optimizers.py").write_text(SOURCE)
    before = content(theirs)
    result = report(theirs, "--page", tmp_path / "page.html", "--json", tmp_path / "study.json")
    assert result.exit_code == 0, result.output
    assert HOME_MADE in result.output
    assert not (tmp_path / "imported").exists()
    assert content(theirs) == before
    assert report(tmp_path / "study.json", "--page", tmp_path / "page.html").exit_code == 0
    assert not (tmp_path / "imported").exists()


def test_of_a_contender_that_was_renamed_nothing_is_imported(theirs: Path, tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text(SOURCE)
    with sqlite3.connect(theirs / "study.sqlite") as database:
        database.execute(
            "UPDATE study_user_attributes SET value_json = replace(value_json, '\"adamw\"', "
            "'\"evil:Mine\"')"
        )
    database.close()
    before = content(theirs)
    assert read_study(str(theirs)).contenders[0].name == "evil:Mine"
    assert not (tmp_path / "imported").exists()
    assert content(theirs) == before


@pytest.mark.parametrize("left", ["log", "journal"])
def test_what_a_killed_process_has_left_stays_as_it_is(
    left: str, theirs: Path, tmp_path: Path
) -> None:
    """SQLite would finish, or undo, what the process has begun, and write to do so."""
    database = sqlite3.connect(theirs / "study.sqlite", isolation_level=None)
    if left == "log":
        database.execute("PRAGMA journal_mode = WAL")
    else:
        database.execute("PRAGMA cache_spill = 1")
        database.execute("PRAGMA cache_size = 1")
    database.execute("BEGIN")
    database.execute("UPDATE trial_user_attributes SET value_json = '\"lost\"'")
    if left == "log":
        database.execute("ROLLBACK")
        database.execute("UPDATE studies SET study_name = 'renamed'")
    copy = tmp_path / "copy"
    shutil.copytree(theirs, copy)
    database.close()
    before = content(copy)
    assert len(before) >= 2
    assert read_study(str(copy)).complete
    assert content(copy) == before


def test_a_reader_waits_for_no_lock_for_ever(theirs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steppe.compare.execution.study_storage._TIMEOUT_S", 0)
    database = sqlite3.connect(theirs / "study.sqlite", isolation_level=None)
    database.execute("BEGIN EXCLUSIVE")
    with pytest.raises(ValueError, match=r"theirs cannot be used as a storage: .*locked"):
        read_study(str(theirs))
    database.close()


def test_a_damaged_database_is_refused_in_one_line(theirs: Path, tmp_path: Path) -> None:
    whole = (theirs / "study.sqlite").read_bytes()
    damaged = tmp_path / "damaged.sqlite"
    for size in (0, 10, 100, 5_000, len(whole) // 2):
        damaged.write_bytes(whole[:size])
        result = report(damaged, "--page", tmp_path / "page.html")
        assert result.exit_code == 2
        assert re.fullmatch(r"steppe: [^\n]*damaged\.sqlite[^\n]*\n", result.stderr)


@pytest.mark.parametrize(
    ("key", "value"),
    [("outcome", "3"), ("number", '"x"'), ("phase", "null"), ("settings", "[]"), ("seed", "{}")],
)
def test_a_damaged_trial_is_refused_in_one_line(key: str, value: str, theirs: Path) -> None:
    with sqlite3.connect(theirs / "study.sqlite") as database:
        database.execute(
            "UPDATE trial_user_attributes SET value_json = ? WHERE key = ?", (value, key)
        )
    database.close()
    with pytest.raises(ValueError, match="theirs cannot be read: ") as refusal:
        read_study(str(theirs))
    assert "\n" not in str(refusal.value)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Write a finished study of two optimizers, and one run that failed."""
    runs = {
        "adamw": [outcome(0.7), outcome(0.8), outcome(0.75)],
        "sgd": [outcome(0.6), studies.FAILED, outcome(0.65)],
    }
    path = tmp_path / "study.json"
    studies.study(runs).save(path)
    assert load(path).complete
    return path


def first(study: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(each for each in study["trials"] if each["outcome"])
    return found


MUTATIONS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no contenders": (lambda s: s.update(contenders=[], trials=[]), "contenders must be"),
    "a contender twice": (
        lambda s: s["contenders"].append(s["contenders"][0]),
        "contenders must be different from each other",
    ),
    "too few trials": (lambda s: s["plan"].update(trials=2), "plan.trials must be at least 3"),
    "negative budget": (lambda s: s["plan"].update(budget=-1), "plan.budget must be at least 1"),
    "huge number": (
        lambda s: s["plan"].update(trials=10**400),
        "plan.trials must be an integer",
    ),
    "no such family": (lambda s: s["plan"].update(family=["x"]), "plan.family must be one of"),
    "no setup": (lambda s: s.update(setup={}), "setup.model is missing"),
    "setup of another type": (
        lambda s: s["setup"].update(epochs="two"),
        "setup.epochs must be an integer, got 'two'",
    ),
    "no epochs": (lambda s: s["setup"].update(epochs=0), "setup.epochs must be at least 1"),
    "empty stream": (lambda s: s["setup"].update(stream=[0]), "setup.stream must be"),
    "factor 0": (lambda s: s["metric"].update(factor=0), "metric.factor must be"),
    "factor null": (lambda s: s["metric"].update(factor=None), "metric.factor must be"),
    "no such contender": (lambda s: first(s).update(optimizer="x"), "optimizer must be one of"),
    "no such phase": (
        lambda s: first(s).update(phase="x"),
        "phase must be one of pool, default, recommended",
    ),
    "number too large": (lambda s: first(s).update(number=9), "number must be a number from 0"),
    "negative seed": (lambda s: first(s).update(seed=-1), "seed must be at least 0"),
    "a trial twice": (lambda s: s["trials"].append(first(s)), "trials must be different"),
    "setting of null": (lambda s: first(s).update(settings={"lr": None}), "settings.lr must be"),
    "setting of text": (lambda s: first(s).update(settings={"lr": "1"}), "must be a number"),
    "neither outcome nor error": (
        lambda s: first(s).update(outcome=None, error=""),
        "error must be why there is no outcome",
    ),
    "short curve": (
        lambda s: [column.pop() for column in first(s)["outcome"]["curve"].values()],
        "outcome.curve must be of 2 epochs, got 1",
    ),
    "tasks without a stream": (
        lambda s: first(s)["outcome"]["curve"].update(tasks=[[0.5], [0.5]]),
        "tasks must be 0 scores, got 1",
    ),
    "columns that are none": (
        lambda s: first(s)["outcome"]["curve"].update(lr=3),
        "must be a list for each field",
    ),
    "negative time": (
        lambda s: first(s)["outcome"]["costs"].update(seconds=-1.0),
        "costs.seconds must be from 0 to 1e+100, got -1.0",
    ),
    "density of null": (
        lambda s: first(s)["outcome"]["curvature"].update(density=[[1.0, None]]),
        "density must be finite numbers",
    ),
    "density of threes": (
        lambda s: first(s)["outcome"]["curvature"].update(density=[[1.0, 2.0, 3.0]]),
        "density",
    ),
    "space of text": (
        lambda s: s["contenders"][0].update(space={"lr": {"low": "a", "high": "b"}}),
        "contenders[0].space.lr must be",
    ),
    "space of long text": (
        lambda s: s["contenders"][0].update(space={"lr": {"low": "a" * 5_000, "high": 1}}),
        "contenders[0].space.lr must be",
    ),
    "space upside down": (
        lambda s: s["contenders"][0].update(space={"lr": {"low": 2, "high": 1}}),
        "contenders[0].space.lr must be",
    ),
    "space of nothing": (
        lambda s: s["contenders"][0].update(space={"lr": {"choices": []}}),
        "contenders[0].space.lr must be",
    ),
    "controls nobody": (
        lambda s: s["contenders"][0].update(control_for=["x"]),
        "control_for must be one of",
    ),
    "no direction": (
        lambda s: s["metric"].pop("higher_is_better"),
        "metric.higher_is_better is missing: expected true or false",
    ),
    "space of a huge number": (
        lambda s: s["contenders"][0].update(space={"lr": {"low": 1, "high": 10**400}}),
        "contenders[0].space.lr must be",
    ),
    "unknown field": (lambda s: s.update({"\x1b[31m": 1}), "unknown field: \\x1b[31m"),
}


@pytest.mark.parametrize(("damage", "message"), MUTATIONS.values(), ids=MUTATIONS.keys())
def test_an_edited_file_is_refused_in_one_line(
    damage: Callable[[dict[str, Any]], Any], message: str, saved: Path
) -> None:
    study = json.loads(saved.read_text())
    damage(study)
    saved.write_text(json.dumps(study))
    result = report(saved)
    assert result.exit_code == 2
    assert re.fullmatch(r"steppe: [^\n]*study\.json [^\n]*\n", result.stderr)
    assert message in result.stderr
    assert len(result.stderr) < 500
    assert "\x1b" not in result.output


TEXTS = {
    "empty": b"",
    "half": b'{"name": "x", ',
    "not utf-8": b'{"name": "\xe9"}',
    "utf-16": '{"name": "x"}'.encode("utf-16"),
    "with a mark": b"\xef\xbb\xbf{}",
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "NaN": b'{"budget": NaN}',
    "infinity": b'{"budget": -Infinity}',
    "too large": b'{"budget": 1e999}',
    "long number": b'{"budget": ' + b"9" * 5_000 + b"}",
    "twice": b'{"name": "x", "name": "y"}',
    "binary": bytes(range(256)),
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_what_is_no_json_is_refused_in_one_line(text: bytes, tmp_path: Path) -> None:
    path = tmp_path / "study.json"
    path.write_bytes(text)
    result = report(path)
    assert result.exit_code == 2
    assert re.fullmatch(r"steppe: [^\n]*study\.json [^\n]*\n", result.stderr)
    assert len(result.stderr) < 400


@pytest.mark.parametrize("name", ["pipe.json", "pipe.sqlite"])
def test_a_pipe_is_not_waited_for(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    result = report(tmp_path / name)
    assert result.exit_code == 2
    assert "it is no ordinary file" in result.stderr


def test_a_directory_may_be_called_as_a_file_is(theirs: Path, tmp_path: Path) -> None:
    theirs.rename(tmp_path / "theirs.json")
    assert read_study(str(tmp_path / "theirs.json")).complete


EVIL = {
    "escape": "a\x1b[31mred\x07\n\u202eb\x9b",
    "markup": "[bold red]x[/bold red][/]:smile:",
    "script": "</script><script>alert(1)</script><img src=x onerror=alert(2)>",
    "formula": "$x_{",
    "long": "a" * 3_000,
    "surrogate": "a\ud800b",
}


@pytest.mark.parametrize("name", EVIL.values(), ids=EVIL.keys())
def test_names_reach_terminal_page_and_pictures_as_text(
    name: str, saved: Path, tmp_path: Path
) -> None:
    study = json.loads(saved.read_text().replace(json.dumps("adamw"), json.dumps(name)))
    study |= {"task": name, "name": name, "command": name}
    study["setup"]["model"] = study["metric"]["name"] = study["metric"]["unit"] = name
    study["versions"] = {name: name}
    study["trials"][0]["where"] = name
    study["contenders"][1]["title"] = name
    for trial in study["trials"]:
        trial["settings"] = {name: 1.0}
        trial["error"] = trial["error"] and name
    saved.write_text(json.dumps(study))
    page = tmp_path / "page.html"
    # Nothing is left of a picture beside so long a name.
    figures = [] if name == EVIL["long"] else ["--figures", tmp_path / "figures"]
    result = report(saved, "--page", page, *figures)
    assert result.exit_code == 0, result.output
    html = page.read_text(encoding="utf-8")
    for text in (result.output, html):
        assert not set("\x1b\x07\u202e\x9b") & set(text)
    assert EVIL["script"] not in html
    assert "<img src=x" not in html
    if name == EVIL["markup"]:
        assert name in result.output.replace("\n", "")
    assert {path.name for path in tmp_path.iterdir()} <= {"study.json", "page.html", "figures"}


def test_pictures_stay_in_their_directory(saved: Path, tmp_path: Path) -> None:
    study = json.loads(saved.read_text())
    study["task"] = "../../a/b"
    saved.write_text(json.dumps(study))
    assert report(saved, "--figures", tmp_path / "figures").exit_code == 0
    names = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert names[0] == ".._.._a_b-budgets.png"
