"""The command as a user meets it, killed and interrupted too."""

import json
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

import steppe
from steppe import cli
from steppe.bench.first_step import FirstStep
from steppe.bench.shapes import MODELS, uniform
from steppe.cli.app import app
from steppe.compare.results import FILE, Results

NUMBERS = "optimizer, seed, train_loss, test_loss, test_accuracy, sharpness, state_bytes"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def numbers(out: Path) -> list[tuple[object, ...]]:
    """Everything about the runs and their curves that must repeat, times left out."""
    connection = sqlite3.connect(out / FILE)
    runs = connection.execute(f"SELECT {NUMBERS} FROM runs ORDER BY optimizer, seed").fetchall()
    curves = connection.execute(
        "SELECT optimizer, seed, epoch, c.train_loss, c.test_loss, c.test_accuracy"
        " FROM curves c JOIN runs r ON r.id = c.run ORDER BY optimizer, seed, epoch"
    ).fetchall()
    connection.close()
    return runs + curves


def table(text: str) -> dict[str, list[str]]:
    """Read the rows of the main table, by optimizer."""
    lines = text.split("B/param")[1].split("± is the")[0].splitlines()
    return {words[0]: words[1:] for line in lines if len(words := line.split()) > 7}


def test_version() -> None:
    result = run("--version")
    assert result.exit_code == 0
    assert result.output == f"steppe {steppe.__version__}\n"


def test_doctor() -> None:
    result = run("doctor")
    assert result.exit_code == 0
    assert "DualAdam" in result.output
    assert "torch" in result.output


def test_help_explains_the_switch() -> None:
    result = CliRunner().invoke(app, ["compare", "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    for word in ("--switch-rate", "12 500 steps", "16 %", "--optimizers", "+sam"):
        assert word in result.output


def test_compare_from_nothing_and_again(tmp_path: Path) -> None:
    options = ("compare", "digits", "--optimizers", "adamw,DualAdam,sgd+sam", "--epochs", 1)
    first = run(*options, "--seeds", 2, "--out", tmp_path / "a")
    assert first.exit_code == 0, first.output
    assert list(table(first.output)) == ["adamw", "adam+warmup", "dualadam", "sgd+sam"]
    assert "[8/8] sgd+sam, seed 2 of 2: test accuracy" in first.output
    assert "(kept)" not in first.output
    assert max(map(len, first.output.split("[8/8]")[1].split("Results:")[0].splitlines())) <= 100
    assert (tmp_path / "a" / "curves-digits.png").stat().st_size > 10_000

    again = run(*options, "--seeds", 2, "--out", tmp_path / "a")
    assert again.output.count("(kept)") == 8
    assert table(again.output) == table(first.output)

    elsewhere = run(*options, "--seeds", 2, "--out", tmp_path / "b")
    assert elsewhere.exit_code == 0
    assert numbers(tmp_path / "b") == numbers(tmp_path / "a")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["digit"], "did you mean digits"),
        (["--optimizers", "adamw,dualadm"], "did you mean dualadam"),
        (["--seeds", "0"], "seeds must be at least 1, got 0"),
        (["--lr", "-1"], "lr must be a finite number above 0, got -1.0"),
        (["--data", "/nowhere"], "--data is not for it"),
        (["fashion-mnist", "--data", "/nowhere"], "/nowhere/train-images-idx3-ubyte.gz"),
    ],
    ids=str,
)
def test_a_mistake_is_named_before_anything_is_made(
    tmp_path: Path, options: list[str], message: str
) -> None:
    result = run("compare", *options, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert result.stderr.startswith("steppe: ")
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


def test_an_out_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    result = run("compare", "--epochs", 1, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert str(tmp_path / "out") in result.stderr


def test_a_missing_package_of_the_extra_is_named_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    result = run("compare", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "sklearn" in result.stderr
    assert "pip install 'steppe[compare]'" in result.stderr


@pytest.mark.parametrize("module", ["matplotlib.figure", "scipy.stats"])
def test_what_the_end_needs_is_missed_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    result = run("compare", "--out", tmp_path / "out")
    assert result.exit_code == 2
    package = module.split(".")[0]
    assert result.stderr == f"steppe: {package} is missing: pip install 'steppe[compare]'\n"
    assert not (tmp_path / "out").exists()


SHORT = ("compare", "--optimizers", "adamw,sgd", "--epochs", 1, "--seeds", 1, "--lr", 0.01)


def test_without_curves_there_is_a_table_and_a_warning(tmp_path: Path) -> None:
    picture = tmp_path / "curves-digits.png"
    picture.mkdir()
    result = run(*SHORT, "--out", tmp_path)
    assert result.exit_code == 0
    assert list(table(result.output)) == ["adamw", "sgd"]
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith(f"steppe: no curves drawn in {picture}: IsADirectoryError")
    assert "Curves:" not in result.output


def test_the_table_does_not_wait_for_the_curves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bool:
        raise RuntimeError("in drawing")

    monkeypatch.setattr("steppe.compare.command.plot_curves", fail)
    result = run(*SHORT, "--out", tmp_path)
    assert isinstance(result.exception, RuntimeError)
    assert list(table(result.output)) == ["adamw", "sgd"]


def test_results_that_are_none_are_refused_in_one_line(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / FILE)
    connection.executescript("CREATE TABLE other (x); PRAGMA user_version = 1;")
    connection.close()
    result = run(*SHORT, "--out", tmp_path)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith(f"steppe: {tmp_path / FILE} is not usable as a results file: ")
    assert "[1/2]" not in result.output


def test_results_lost_amid_the_runs_cost_no_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = Results.add

    def add_once(results: Results, *arguments) -> None:
        add(results, *arguments)
        with sqlite3.connect(tmp_path / FILE) as other:
            other.executescript("DROP TABLE curves; DROP TABLE runs;")
        other.close()

    monkeypatch.setattr(Results, "add", add_once)
    result = run(*SHORT, "--out", tmp_path)
    assert result.exit_code == 1
    assert list(table(result.output)) == ["adamw"]
    (line,) = result.stderr.splitlines()
    assert line == f"steppe: {tmp_path / FILE} cannot be used any more: no such table: runs"


@pytest.fixture
def _tiny_bench(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the command measure a model of three tensors, and take no first steps."""
    monkeypatch.setitem(MODELS, "small", lambda: uniform(3, 10))
    monkeypatch.setattr(
        "steppe.bench.benchmark.first_step", lambda name, *_: FirstStep(name, 2.0, 0.5)
    )


TINY = ("bench", "small", "--steps", 2, "--threads", 1)


@pytest.mark.usefixtures("_tiny_bench")
def test_bench_prints_tables_and_writes_numbers_and_a_picture(tmp_path: Path) -> None:
    names = "adamw-fused,dualadam,lbfgs"
    result = run(*TINY, "--optimizers", names, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert "[1/6] small, adamw-fused: " in result.output
    assert "[6/6] first step, lbfgs: 2000 ms, cached 500 ms" in result.output
    assert "small: 3 tensors" in result.output
    assert "Not measured: lbfgs (small): TypeError" in result.output
    assert max(map(len, result.output.split("[6/6]")[1].splitlines())) <= 100
    content = json.loads((tmp_path / "bench.json").read_text())
    assert [row["optimizer"] for row in content["steps"]] == ["adamw-fused", "dualadam"]
    assert content["setup"]["steps"] == 2
    assert (tmp_path / "bench.png").stat().st_size > 10_000
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.usefixtures("_tiny_bench")
def test_an_interrupted_bench_shows_what_there_is_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> FirstStep:
        raise KeyboardInterrupt

    monkeypatch.setattr("steppe.bench.benchmark.first_step", interrupted)
    result = run(*TINY, "--optimizers", "dualadam", "--out", tmp_path)
    assert result.exit_code == 130
    assert "small: 3 tensors" in result.output
    assert "Interrupted" in result.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["gpt3"], "did you mean gpt2"),
        (["--optimizers", "adamw,dualadam-int4"], "did you mean dualadam-int8"),
        (["--steps", "0"], "steps must be at least 1, got 0"),
        (["--device", "abacus"], "device 'abacus' cannot be used here"),
    ],
    ids=str,
)
def test_a_mistake_in_a_bench_is_named_before_anything_is_made(
    tmp_path: Path, options: list[str], message: str
) -> None:
    result = run("bench", *options, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert result.stderr.startswith("steppe: ")
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


# -P: like a console script, this does not put the current directory on the path.
SCRIPT = (sys.executable, "-P", "-c", "from steppe.cli import main; main()")
OWN_CLASS = """
import torch
class Mine(torch.optim.SGD):
    def __init__(self, params, lr=0.1):
        super().__init__(params, lr=lr)
"""


@pytest.mark.parametrize(("name", "status"), [("own:Mine", 0), ("broken:Mine", 2)])
def test_a_class_of_the_current_directory_is_found(tmp_path: Path, name: str, status: int) -> None:
    (tmp_path / "own.py").write_text(OWN_CLASS)
    (tmp_path / "broken.py").write_text("raise RuntimeError('not today')\n")
    done = subprocess.run(
        [*SCRIPT, "compare", "--optimizers", name, "--epochs", "1", "--seeds", "1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == status, done.stderr
    if status == 0:
        assert list(table(done.stdout)) == ["own:Mine"]
    else:
        message = "steppe: broken:Mine cannot be imported: RuntimeError: not today\n"
        assert done.stderr == message


@pytest.mark.parametrize("missing", ["typer", "rich.console"])
def test_without_the_extra_the_command_says_how_to_get_it(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("steppe.cli.app", "steppe.commands.console", "steppe.compare.command"):
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    package = missing.split(".")[0]
    assert caught.value.code == f"steppe: {package} is missing: pip install 'steppe[compare]'"


def test_what_is_cut_off_goes_on_to_the_same_numbers(tmp_path: Path) -> None:
    """Real processes, one killed and one interrupted amid its runs, against one left in peace."""
    options = ["compare", "digits", "--optimizers", "adamw,dualadam+sam", "--epochs", "6"]
    options += ["--seeds", "2", "--out"]

    killed, _ = stop_after(1, signal.SIGKILL, [*options, tmp_path / "cut"])
    assert killed == -signal.SIGKILL
    kept = finished_runs(tmp_path / "cut")
    assert 1 <= kept < 8

    interrupted, output = stop_after(kept + 1, signal.SIGINT, [*options, tmp_path / "cut"])
    assert interrupted == 130
    assert output.count("(kept)") == kept
    assert next(iter(table(output))) == "adamw"
    assert "Not finished; of 2 seeds so far: adamw" in output
    assert "run again to go on" in " ".join(output.split())
    kept = finished_runs(tmp_path / "cut")
    assert kept < 8

    continued = run(*options, tmp_path / "cut")
    assert continued.output.count("(kept)") == kept
    assert run(*options, tmp_path / "whole").exit_code == 0
    assert numbers(tmp_path / "cut") == numbers(tmp_path / "whole")


def stop_after(runs: int, how: signal.Signals, arguments: list[object]) -> tuple[int, str]:
    """Start the command, send the signal once that many runs are kept, return code and output."""
    out = Path(str(arguments[-1]))
    with subprocess.Popen(
        [sys.executable, "-c", "from steppe.cli import main; main()", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        while finished_runs(out) < runs and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(how)
        output, _ = process.communicate()
    return process.returncode, output


def finished_runs(out: Path) -> int:
    if not (out / FILE).exists():
        return 0
    connection = sqlite3.connect(out / FILE)
    try:
        return int(connection.execute("SELECT count(*) FROM runs").fetchone()[0])
    except sqlite3.OperationalError:  # the tables are not there yet
        return 0
    finally:
        connection.close()


def test_profile_prints_the_card_of_a_saved_run(tmp_path: Path) -> None:
    options = ("--optimizers", "adamw", "--epochs", 1, "--seeds", 1, "--out", tmp_path)
    assert run("compare", "digits", *options).exit_code == 0
    (path,) = (tmp_path / "checkpoints").iterdir()
    result = run("profile", path, "--task", "digits", "--samples", 200, "--out", tmp_path / "c.png")
    assert result.exit_code == 0, result.output
    for word in ("loss", "200 samples", "λ_max", "trace", "threshold", "sharpness, SAM", "stable"):
        assert word in result.output
    assert (tmp_path / "c.png").stat().st_size > 10_000


def test_profile_does_without_an_optimizer_that_has_no_preconditioner(tmp_path: Path) -> None:
    options = ("--optimizers", "rprop", "--epochs", 1, "--seeds", 1, "--out", tmp_path)
    assert run("compare", "digits", *options).exit_code == 0
    (path,) = (tmp_path / "checkpoints").iterdir()
    result = run("profile", path, "--task", "digits", "--samples", 50)
    assert result.exit_code == 0, result.output
    assert "Without its optimizer: Rprop has no diagonal preconditioner" in result.output
    assert "λ_max" in result.output
    assert "threshold" not in result.output


def test_profile_says_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"weight": torch.zeros(2)}, path)
    for arguments, message in [
        ((tmp_path / "none.pt", "--task", "digits"), "No such file"),
        ((path, "--task", "digits"), "does not fit digits"),
        ((path, "--task", "nothing"), "no task"),
        ((path, "--task", "digits", "--samples", 0), "samples must be at least 1, got 0"),
        ((path, "--task", "digits", "--threads", 0), "threads must be at least 1, got 0"),
    ]:
        result = run("profile", *arguments)
        assert result.exit_code == 2, result.output
        assert message in result.output
