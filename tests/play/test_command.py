"""The command as a user meets it."""

import json
from pathlib import Path

import pytest

from helpers.command_line import Result, run_steppe

pytestmark = pytest.mark.thorough

QUICK = ("--optimizers", "adam,sgd", "--steps", 20, "--starts", 2, "--lr", "0.01,0.1")
FILES = {"play.json", "losses.png", "play.html", "paths.png", "paths.gif"}


def play(*arguments: object) -> Result:
    return run_steppe("play", *arguments)


def test_it_prints_a_table_and_writes_everything(tmp_path: Path) -> None:
    result = play("goldstein-price", *QUICK, "--out-dir", tmp_path / "new")
    assert result.exit_code == 0, result.output
    assert "goldstein-price: 2 starts, 20 steps, cosine lr" in result.output
    assert "Every optimizer ran at lr 0.01, 0.1, falling to 0 along a cosine, and" in result.output
    assert max(map(len, result.output.split("Written")[0].splitlines())) <= 100
    assert {each.name for each in (tmp_path / "new").iterdir()} == FILES
    for name in FILES:
        assert f"Written: {tmp_path / 'new' / name}" in result.output


def test_the_same_again_writes_the_same_numbers(tmp_path: Path) -> None:
    noisy = ("sharp-flat", *QUICK, "--noise", 0.3, "--animation", "none")
    for seed, name in ((1, "a"), (1, "b"), (2, "c")):
        assert play(*noisy, "--seed", seed, "--out-dir", tmp_path / name).exit_code == 0
    one, again, other = ((tmp_path / name / "play.json").read_text() for name in "abc")
    assert one == again != other


def test_options_reach_what_they_are_for(tmp_path: Path) -> None:
    options = ("--start", "1,-2", "--start", "0.5,0.5", "--set", "condition_number=50")
    options += ("--switch", 0.5, "--rho", 0.3, "--schedule", "constant")
    options += ("--animation", "none", "--out-dir", tmp_path)
    names = "dualadam,sgd+sam,adam+warmup"
    result = play("quadratic", *QUICK, *options, "--optimizers", names)
    assert result.exit_code == 0, result.output
    assert "quadratic (condition_number 50): 2 starts, 20 steps, constant lr" in result.output
    assert "Every optimizer ran at lr 0.01, 0.1, and" in result.output
    content = json.loads((tmp_path / "play.json").read_text())
    assert content["parameters"] == {"condition_number": 50}
    assert content["schedule"] == "constant"
    dual, sam, warmup = content["optimizers"]
    assert [start[0] for start in sam["points"]] == [[1, -2], [0.5, 0.5]]
    assert dual["settings"]["switch"] == warmup["settings"]["switch"] == 0.5
    assert sam["settings"]["rho"] == 0.3
    assert not (tmp_path / "paths.gif").exists()


def test_of_many_variables_it_writes_the_losses(tmp_path: Path) -> None:
    result = play("ackley", *QUICK, "--set", "dimension=3", "--out-dir", tmp_path)
    assert result.exit_code == 0, result.output
    assert {each.name for each in tmp_path.iterdir()} == {"play.json", "losses.png", "play.html"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["akley"], "did you mean ackley"),
        (["ackley", "--start", "1,2,3"], "a start on ackley has 2 coordinates, got 1,2,3"),
        (["ackley", "--start", "1;2"], "start must be numbers with commas between, got '1;2'"),
        (["ackley", "--lr", "0.1,-1"], "lr must be a finite number > 0, got -1.0"),
        (["ackley", "--lr", "fast"], "lr must be numbers with commas between, got 'fast'"),
        (["ackley", "--steps", "0"], "steps must be at least 1, got 0"),
        (["ackley", "--starts", "0"], "starts must be at least 1, got 0"),
        (["ackley", "--optimizers", "adma"], "did you mean adam"),
        (["ackley", "--set", "dimension"], "set must be NAME=VALUE with a number, got 'dimension'"),
        (["ackley", "--set", "dimension=2.5"], "dimension must be an integer, got 2.5"),
        (["ackley", "--set", "size=2"], "no parameter of ackley is called 'size'"),
        (["sharp-flat", "--set", "barrier=-1"], "barrier must be a finite number > 0, got -1"),
        (["ackley", "--schedule", "cosin"], 'Did you mean "cosine"?'),
        (["ackley", "--animation", "webm"], '--animation. Choose from: "gif", "mp4", "none"'),
        (["ackley", "--optimizers", "lbfgs"], "lbfgs evaluates the function as often as it likes"),
    ],
)
def test_a_mistake_is_named_in_one_line_before_anything_is_made(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    result = play(*arguments, "--out-dir", tmp_path / "out")
    assert result.exit_code == 2
    assert result.stderr.startswith("steppe: ")
    assert len(result.stderr.splitlines()) == 1
    assert message in result.stderr
    assert not (tmp_path / "out").exists()
