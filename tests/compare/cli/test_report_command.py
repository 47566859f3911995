"""The command ``steppe report``: what it writes, of one study and of two."""

import csv
import io
import json
from pathlib import Path

import pytest

from helpers.realistic_study import realistic
from steppe._shared.console import make_app, run_app
from steppe.compare.cli.report import report


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Save two studies of one task, and one of them unfinished."""
    directory = tmp_path_factory.mktemp("studies")
    paths = {name: directory / f"{name}.json" for name in ("one", "two")}
    realistic().save(paths["one"])
    realistic(seed=1).save(paths["two"])
    return paths


def run(*arguments: object) -> None:
    app = make_app("steppe")
    app.default(report)
    run_app(app, [str(each) for each in arguments])


@pytest.mark.thorough
def test_it_writes_page_data_figures_and_tables(
    saved: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {name: tmp_path / name for name in ("page.html", "again.json", "figures", "tables")}
    options = zip(("--page", "--json", "--figures", "--tables"), places.values(), strict=True)
    run(saved["one"], *(each for option in options for each in option), "--brief")
    assert "adamw+sam is better than adamw" in capsys.readouterr().out
    assert "adamw+sam is better than adamw" in places["page.html"].read_text()
    assert places["again.json"].read_bytes() == saved["one"].read_bytes()
    assert sorted(each.name for each in places["figures"].iterdir()) == [
        f"fashion-mnist-{name}.png" for name in ("budgets", "curves", "differences", "flatness")
    ]
    board = list(csv.DictReader(io.StringIO((places["tables"] / "leaderboard.csv").read_text())))
    verdicts = {
        each["optimizer"]: each for each in json.loads(saved["one"].read_text())["verdicts"]
    }
    for row in board[:-1]:
        if row["optimizer"] in verdicts:
            assert float(row["p"]) == pytest.approx(verdicts[row["optimizer"]]["p"])


@pytest.mark.thorough
def test_two_studies_stand_beside_each_other(
    saved: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(saved["one"], saved["two"], "--tables", tmp_path)
    page = saved["one"].with_name("report-of-two.html")
    said = "No verdict of one study contradicts the other’s, on 4 optimizers."
    assert said in capsys.readouterr().out
    assert said in page.read_text()
    assert sorted(each.name for each in tmp_path.glob("*.csv")) == [
        "changes.csv",
        "levels.csv",
        "plans.csv",
    ]


@pytest.mark.parametrize(
    "option", [("--json", "x.json"), ("--figures", "x"), ("--study", "x"), ("--brief",)]
)
def test_what_takes_one_study_is_refused_of_two(
    saved: dict[str, Path], capsys: pytest.CaptureFixture[str], option: tuple[str, ...]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(saved["one"], saved["two"], *option)
    assert ended.value.code == 2
    assert f"{option[0]} takes one study" in capsys.readouterr().err


def test_a_study_beside_itself_is_refused(
    saved: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(saved["one"], saved["one"])
    assert "must be two different ones" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["page", "json"])
def test_what_is_read_is_not_written_over(
    option: str, saved: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = saved["one"].read_bytes()
    link = tmp_path / "link"
    link.symlink_to(saved["one"])
    for other in ([], [saved["two"]] if option == "page" else []):
        for place in (saved["one"], link):
            with pytest.raises(SystemExit):
                run(saved["one"], *other, f"--{option}", place)
            assert f"--{option} {place} would overwrite what is read" in capsys.readouterr().err
    assert saved["one"].read_bytes() == before
    database = tmp_path / "study.sqlite"
    database.write_bytes(b"kept")
    with pytest.raises(SystemExit):
        run(tmp_path, f"--{option}", database)
    assert database.read_bytes() == b"kept"
    assert "would overwrite" in capsys.readouterr().err
