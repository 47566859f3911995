"""Figures by name, and the command that draws them."""

import json
from pathlib import Path

import pytest

from figures.__main__ import app
from figures.catalogue import NAMES, find_figure
from helpers.command_line import Result, run_program
from steppe._shared.console import run_app


def run(arguments: list[str]) -> Result:
    return run_program(lambda: run_app(app, arguments))


pytestmark = pytest.mark.thorough

STUDIES = Path(__file__).parents[2] / "docs" / "results"


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_says_what_it_tests_and_what_came_out(name: str) -> None:
    figure = find_figure(name)
    assert figure.title.endswith((".", "?"))
    assert "\nClaim" in figure.text
    assert "\nCame out" in figure.text
    assert "PENDING" not in figure.text


def test_the_list_names_them_all() -> None:
    listed = run([])
    assert listed.exit_code == 0
    for name in NAMES:
        assert name in listed.output


def test_a_figure_is_written_with_its_numbers_and_drawn_again_from_them(tmp_path: Path) -> None:
    done = run(["dualadam-mechanism", "--out-dir", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "Claim" in done.output
    picture, numbers = tmp_path / "dualadam-mechanism.png", tmp_path / "dualadam-mechanism.json"
    first = picture.read_bytes()
    assert first.startswith(b"\x89PNG")
    data = json.loads(numbers.read_text())
    assert len(data["root"]) == len(data["given"]["Adam"])

    data["alphas"] = data["alphas"][:1]
    numbers.write_text(json.dumps(data))
    again = run(["dualadam-mechanism", "--out-dir", str(tmp_path), "--redraw"])
    assert again.exit_code == 0, again.output
    assert json.loads(numbers.read_text()) == data
    assert picture.read_bytes() != first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cm-akley"], "no figure is called 'cm-akley': did you mean cm-ackley? There are "),
        (["escape", "--results", "x"], "escape runs its own experiment: leave --results out"),
        (["escape", "--threads", "0"], "threads must be at least 1, got 0"),
        (
            ["dualadam-accuracy", "--redraw", "--results", "x"],
            "--redraw draws what has been measured: leave --results out",
        ),
        (["escape", "--redraw"], "No such file or directory"),
        (["--redraw"], "without a name there is nothing to draw: python -m figures NAME …"),
    ],
)
def test_mistakes_are_named(arguments: list[str], message: str, tmp_path: Path) -> None:
    refused = run([*arguments, "--out-dir", str(tmp_path)])
    assert refused.exit_code == 2
    assert message in refused.stderr
    assert not list(tmp_path.iterdir())


def test_a_study_that_is_not_here_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused = run(["dualadam-accuracy"])
    assert refused.exit_code == 2
    assert "docs/results/digits.json is not here" in refused.stderr
    assert "--results" in refused.stderr


def test_a_study_of_ones_own_is_drawn(tmp_path: Path) -> None:
    study = str(STUDIES / "digits.json")
    arguments = ["dualadam-accuracy", "--results", study, "--out-dir", str(tmp_path)]
    done = run(arguments)
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "dualadam-accuracy.json").read_text())["task"] == "digits"
