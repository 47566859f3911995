"""The command as a user meets it, killed and interrupted too."""

import json
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from helpers import warm_python
from helpers.command_line import run_steppe as run
from steppe._shared.recipes import find_recipe
from steppe.bench.first_step import FirstStep
from steppe.bench.shapes import MODELS, Model, uniform
from steppe.compare.execution.study_registry import find_study, read_study
from steppe.compare.execution.study_storage import open_storage
from steppe.compare.execution.trial_queue import TrialQueue
from steppe.compare.planning.presets import USUAL
from steppe.compare.planning.study import StudyOptions, plan_study
from steppe.compare.records.results import StudyResults
from steppe.compare.tasks.source import find_task
from steppe.compare.training.run import Run, RunContext
from steppe.compare.training.train import train

PATIENCE_S = 240


def kept(out: Path) -> StudyResults:
    storage = open_storage(str(out))
    return TrialQueue(storage, find_study(storage), plan=False).results()


@pytest.fixture
def _tiny_bench(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the command measure a model of three tensors, and take no first steps."""
    monkeypatch.setitem(MODELS, "small", Model(lambda: uniform(3, 10)))
    monkeypatch.setattr(
        "steppe.bench.benchmark.first_step", lambda name, *_: FirstStep(name, 2.0, 0.5)
    )


TINY = ("bench", "small", "--steps", 2, "--threads", 1)


@pytest.mark.usefixtures("_tiny_bench")
def test_bench_prints_tables_and_writes_numbers_and_a_picture(tmp_path: Path) -> None:
    names = "dualadam,lbfgs"
    result = run(*TINY, "--optimizers", names, "--out-dir", tmp_path)
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
    result = run(*TINY, "--optimizers", "dualadam", "--out-dir", tmp_path)
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
    result = run("bench", *options, "--out-dir", tmp_path / "out")
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


def test_one_that_cannot_be_imported_is_named_with_the_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.py").write_text("raise RuntimeError('not today')\n")
    monkeypatch.syspath_prepend(tmp_path)
    result = run("compare", "--optimizers", "broken:Mine", "--out-dir", tmp_path / "out")
    assert result.exit_code == 2
    message = "steppe: broken:Mine cannot be imported: RuntimeError: not today\n"
    assert result.stderr == message


def test_the_command_is_a_module_too() -> None:
    command = [sys.executable, "-m", "steppe", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for name in ("compare", "worker", "report", "profile", "bench", "play", "doctor"):
        assert f" {name} " in done.stdout


HELD_CLASS = """
import time
from pathlib import Path
from own import Mine

HERE = Path(__file__).parent

class Held(Mine):
    steps = 0

    def step(self, closure=None):
        self.steps += 1
        # Beyond the first epoch of four, so that there is a run to go on with.
        while self.steps > 6 and (HERE / "hold").exists():
            (HERE / "held").touch()
            time.sleep(0.01)
        return super().step(closure)
"""


def waited_for(path: Path) -> None:
    until = time.monotonic() + PATIENCE_S
    while not path.exists():
        assert time.monotonic() < until, f"{path} did not come"
        time.sleep(0.01)


@pytest.mark.thorough
def test_ctrl_c_keeps_what_has_finished_and_the_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real processes: interrupted amid a run, then let go on, with the numbers of a quiet study.

    Of a class that is found in the current directory, by the workers too, and in a directory
    whose name means something else to a shell, a URL or a template.
    """
    (tmp_path / "own.py").write_text(OWN_CLASS)
    (tmp_path / "holding.py").write_text(HELD_CLASS)
    (tmp_path / "hold").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    names, out = ["adamw", "holding:Held"], Path("100% {a}?x=1#b 'c' é")
    # Nothing is searched: the pools are all.
    asked = {"samples": 64, "batch_size": 16, "epochs": 3, "budget": 1, "trials": 3}
    asked |= {"lr": 1e-2, "weight_decay": 0.0}
    words = [f"--{name.replace('_', '-')}={value}" for name, value in asked.items()]
    command = ["compare", "digits", "--optimizers", ",".join(names), *words, "--workers", "1"]
    command += ["--out-dir", str(out)]
    with ExitStack() as ending:
        process = subprocess.Popen([*SCRIPT, *command], stdout=subprocess.PIPE, text=True)
        ending.enter_context(process)
        ending.callback(process.kill)
        assert process.stdout is not None
        # Before it stands that so few trials can give no verdict.
        lines = iter(process.stdout.readline, "")
        assert any(line.startswith("[1/6] adamw, trial 0: validation 0.") for line in lines)
        waited_for(tmp_path / "held")
        workers = psutil.Process(process.pid).children()
        assert len(workers) == 1
        process.send_signal(signal.SIGINT)
        output = process.communicate(timeout=PATIENCE_S)[0]
    assert process.returncode == 130
    assert "Interrupted. What has finished is kept: run again to go on." in output
    assert not any(worker.is_running() for worker in workers)
    before = kept(out)
    assert {trial.optimizer for trial in before.trials} == {"adamw"}
    assert {"study.sqlite", "report.html"} <= {path.name for path in out.iterdir()}
    assert len(list((out / "unfinished").glob("*.pt"))) == 1

    (tmp_path / "hold").unlink()
    script = tmp_path / "bin" / "steppe"
    script.parent.mkdir()
    script.write_text("from steppe.cli import main; main()")
    again = warm_python.run(script, *command, libraries=warm_python.STUDIES)
    assert "[6/6] holding:Held, trial 2: validation 0." in again
    assert "adamw, trial 0" not in again.split("digits, mlp")[0]
    assert read_study(str(out)).complete
    results = kept(out)
    assert set(map(repr, before.trials)) <= set(map(repr, results.trials))
    assert not list((out / "unfinished").iterdir())
    study = plan_study("digits", StudyOptions(names, **asked), USUAL, RunContext(out))
    loaded = find_task("digits").task(study.setup.options).load()
    for trial in results.trials:
        recipe = find_recipe(trial.optimizer)
        run = Run(study.setup, recipe, trial.settings, trial.seed, curvature="full")
        quiet = train(run, loaded, RunContext(tmp_path / "quiet"))
        assert trial.outcome is not None
        assert quiet.final == trial.outcome.final
        assert quiet.samples == trial.outcome.samples
        assert quiet.curvature == trial.outcome.curvature
