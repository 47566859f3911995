"""The commands of a study, from nothing to its page and on from there."""

import json
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.command_line import run_steppe as run
from helpers.training_runs import measure_little
from steppe.compare.execution.study_registry import find_study
from steppe.compare.execution.study_storage import open_storage
from steppe.compare.execution.trial_queue import TrialQueue
from steppe.compare.planning import presets
from steppe.compare.planning.presets import PRESETS
from steppe.compare.records.results import StudyResults, load

pytestmark = pytest.mark.thorough

SHORT = ("compare", "digits", "--epochs", 1, "--samples", 64, "--budget", 1, "--trials", 3)
# Nothing is searched: the pool is all there is.
FIXED = (*SHORT, "--optimizers", "adamw,sgd", "--lr", 0.01, "--weight-decay", 0)
ONE_WORKER = (*FIXED, "--workers", 1)


def kept(out: Path) -> StudyResults:
    storage = open_storage(str(out / "study.sqlite"))
    return TrialQueue(storage, find_study(storage), plan=False).results()


class InHouse:
    """Runs a worker's command in this process, to its end, where it would be started."""

    started: list[list[str]]
    ended: list[str]

    def __init__(self, command: list[str], env: dict[str, str], **_: Any) -> None:
        assert command[:3] == [sys.executable, "-m", "steppe"]
        InHouse.started.append(command)
        self.storage = env["STEPPE_STORAGE"]
        self.returncode = self.work(command[3:])

    def work(self, arguments: list[str]) -> int:
        result = run(*arguments, STEPPE_STORAGE=self.storage)
        assert result.exit_code == 0, result.output
        return result.exit_code

    def poll(self) -> int | None:
        return self.returncode

    def terminate(self) -> None:
        InHouse.ended.append("terminate")

    def wait(self, timeout: float) -> int:
        InHouse.ended.append("wait")
        return self.returncode

    def kill(self) -> None:
        InHouse.ended.append("kill")


class Idle(InHouse):
    """Does nothing, and does not end by itself."""

    def work(self, arguments: list[str]) -> int:
        return 0

    def poll(self) -> int | None:
        return None


class Broken(InHouse):
    """Ends at once, as a worker does that cannot begin."""

    def work(self, arguments: list[str]) -> int:
        out = Path(arguments[arguments.index("--out-dir") + 1])
        (out / "logs/worker-0.log").write_text("Traceback:\nRuntimeError: no memory\n")
        return 1


@pytest.fixture(autouse=True)
def _in_house(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    threads = torch.get_num_threads()
    InHouse.started, InHouse.ended = [], []
    monkeypatch.setattr("steppe.compare.execution.worker_pool.subprocess.Popen", InHouse)
    measure_little(monkeypatch, "digits")
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def amid(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Have something happen when the command first waits for its workers."""

    def make(happen: Callable[[], None]) -> None:
        monkeypatch.setattr(
            "steppe.compare.execution.worker_pool.time.sleep", lambda seconds: happen()
        )

    return make


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def test_a_study_from_nothing_and_again(tmp_path: Path) -> None:
    out = tmp_path / "results.d" / "one.1"  # dots are no suffixes
    first = run(*ONE_WORKER, "--out-dir", out)
    assert first.exit_code == 0, first.output
    assert "[6/6] sgd, trial 2: validation 0." in first.output
    table = first.output.split("digits, mlp")[1]
    assert table.index(" adamw ") < table.index(" sgd ")
    assert f"Page: {out / 'report.html'}" in first.output
    assert (out / "report.html").stat().st_size > 10_000
    assert max(map(len, first.output.split("Page:")[0].splitlines())) <= 100
    # Of those that were measured in full, which are at the recommended settings.
    assert len(list((out / "checkpoints").iterdir())) == 6
    assert len(InHouse.started) == 1
    assert "--no-checkpoints" not in InHouse.started[0]
    results = kept(out)
    assert results.complete

    again = run(*ONE_WORKER, "--out-dir", out)
    assert again.exit_code == 0
    assert len(InHouse.started) == 1
    assert "[6/6]" not in again.output
    assert again.output.split("digits, mlp")[1] == table
    assert kept(out).trials == results.trials

    more = run(*ONE_WORKER, "--trials", 4, "--optimizers", "sgd,nadam", "--out-dir", out)
    assert more.exit_code == 0, more.output
    assert "sgd, trial 0" not in more.output.split("digits, mlp")[0]
    trials = {(t.optimizer, t.number): t for t in kept(out).trials}
    assert trials.keys() == {(name, number) for name in ("sgd", "nadam") for number in range(4)}
    assert trials["sgd", 0] == results.trials[3]
    # The results of the first plan have been seen.
    assert kept(out).earlier_plans == (results.plan,)


def test_each_line_is_a_trial_and_shows_no_test_result(tmp_path: Path) -> None:
    """The pool, then the runs at default and at the recommended settings."""
    searched = (*SHORT, "--optimizers", "adamw", "--study-seed", 3, "--workers", 1)
    done = run(*searched, "--out-dir", tmp_path)
    assert done.exit_code == 0, done.output
    lines = [line for line in done.output.splitlines() if re.match(r"\[\d", line)]
    places = [
        *(f"trial {number}" for number in range(3)),
        *(f"{kind} settings, run {n}" for kind in ("default", "recommended") for n in range(3)),
    ]
    assert [line.partition(":")[0] for line in lines] == [
        f"[{number}/9] adamw, {place}" for number, place in enumerate(places, start=1)
    ]
    results = kept(tmp_path)
    for line, trial in zip(lines, results.trials, strict=True):
        final = trial.outcome.final
        shown = f"validation {final.validation_score:.4f}, loss {final.validation_loss:.4f}"
        assert line.partition(": ")[2] == shown
    pool = results.trials_of("adamw", "pool")
    # Of equal scores, the lower loss.
    best = max(
        (trial.outcome.final.validation_score, -trial.outcome.final.validation_loss, trial.settings)
        for trial in pool
    )
    for again in results.trials_of("adamw", "recommended"):
        assert again.settings == best[2]
        assert again.seed not in {trial.seed for trial in pool}
    assert results.plan.study_seed == 3


def test_without_out_dir_another_study_seed_has_a_directory_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    places: list[Path] = []

    def stop(task: Any, options: Any, preset: Any, context: Any, **_: Any) -> None:
        places.append(context.out)
        raise ValueError("enough")

    monkeypatch.setattr("steppe.compare.cli.run_study.plan_study", stop)
    for options in ((), ("--study-seed", 5)):
        assert run(*SHORT, *options).exit_code == 2
    assert places == [Path("results/digits"), Path("results/digits-5")]


def test_who_and_why_are_kept(tmp_path: Path) -> None:
    done = run(*ONE_WORKER, "--author", "Ada", "--note", "two <b>tries</b>", "--out-dir", tmp_path)
    assert done.exit_code == 0, done.output
    results = kept(tmp_path)
    assert (results.author, results.note) == ("Ada", "two <b>tries</b>")
    page = (tmp_path / "report.html").read_text()
    assert "Ada" in page
    assert "two &lt;b&gt;tries&lt;/b&gt;" in page


def test_a_report_is_read_from_the_study_and_from_its_json(tmp_path: Path) -> None:
    assert run(*ONE_WORKER, "--out-dir", tmp_path / "study").exit_code == 0
    results = kept(tmp_path / "study")
    (tmp_path / "study" / "report.html").unlink()
    saved = tmp_path / "elsewhere" / "x.json"
    figures = tmp_path / "figures"
    first = run("report", tmp_path / "study", "--json", saved, "--figures", figures)
    assert first.exit_code == 0, first.output
    assert (tmp_path / "study" / "report.html").is_file()
    found = load(saved)
    assert (found.name, found.contenders) == (results.name, results.contenders)
    for one, other in zip(found.trials, results.trials, strict=True):
        assert one.settings == other.settings
        # To the last digit, so that a study can go on from them.
        assert one.outcome.final == other.outcome.final
        assert one.outcome.samples == other.outcome.samples
    json.loads(saved.read_text())
    assert {each.suffix for each in figures.iterdir()} == {".png"}
    again = run("report", saved, "--page", tmp_path / "page.html")
    assert again.exit_code == 0, again.output
    assert again.output.split("Page:")[0] == first.output.split("Page:")[0]
    assert (tmp_path / "page.html").is_file()
    beside = run("report", saved)
    assert beside.exit_code == 0, beside.output
    assert (saved.parent / "report.html").is_file()


def test_reports_of_what_is_not_there_are_refused(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("{}")
    open_storage(str(tmp_path / "empty.sqlite"), create=True)
    for arguments, message in [
        ((tmp_path / "none",), "no study has been kept in it"),
        ((tmp_path / "none.json",), "No such file"),
        ((tmp_path / "other.json",), "is no study saved by steppe report --json"),
        ((tmp_path / "empty.sqlite",), "holds no study of steppe compare"),
    ]:
        result = run("report", *arguments)
        assert result.exit_code == 2
        assert message in result.stderr


def test_without_workers_it_says_how_to_start_one_elsewhere(tmp_path: Path, amid) -> None:
    out = tmp_path / "with space"
    amid(interrupt)
    planned = run(*FIXED, "--workers", 0, "--out-dir", out)
    assert planned.exit_code == 130
    assert not InHouse.started
    (line,) = [line for line in planned.output.splitlines() if "To work at it: " in line]
    _, _, *command = shlex.split(line.partition("To work at it: ")[2])
    worker = run(*command[1:])
    assert worker.exit_code == 0, worker.output
    assert "sgd, trial 0: validation accuracy 0." in worker.output
    assert worker.output.splitlines()[-1].endswith("has ended; 6 trials of it here.")
    assert kept(out).complete
    assert run(*FIXED, "--workers", 0, "--out-dir", out).exit_code == 0


def test_checkpoints_may_be_left_out_here_and_elsewhere(tmp_path: Path, amid) -> None:
    short = (*ONE_WORKER, "--optimizers", "adamw", "--no-checkpoints")
    result = run(*short, "--out-dir", tmp_path)
    assert result.exit_code == 0, result.output
    assert "--no-checkpoints" in InHouse.started[0]
    assert kept(tmp_path).complete
    assert not list(tmp_path.rglob("*.pt"))
    amid(interrupt)
    planned = run(*short, "--trials", 4, "--workers", 0, "--out-dir", tmp_path)
    assert "--no-checkpoints" in planned.output.split("To work at it")[1]


@pytest.mark.parametrize(
    ("arguments", "task", "preset"),
    [
        ((), "digits", "USUAL"),
        (("shakespeare",), "shakespeare", "_LANGUAGE"),
        (("split-mnist",), "split-mnist", "_ONLINE"),
        (("finetune",), "finetune", "_FINETUNE"),
        (("--preset", "dualadam-finetune"), "finetune", "_FINETUNE"),
        (("--preset", "critical-momenta-online", "--scale", "small"), "split-mnist", None),
        # Who names a preset gets nothing of what is usual.
        (("ptb", "--preset", "critical-momenta"), "ptb", "_CRITICAL_MOMENTA"),
    ],
)
def test_without_a_preset_a_study_is_what_is_usual_for_its_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...], task: str, preset: str | None,
) -> None:  # fmt: skip
    asked: list[Any] = []

    def refused(*given: Any, **_: Any) -> None:
        asked.extend(given)
        raise ValueError("enough")

    monkeypatch.setattr("steppe.compare.cli.run_study.plan_study", refused)
    result = run(
        "compare", *arguments, "--seq-length", 20, "--no-checkpoints", "--out-dir", tmp_path
    )
    assert result.exit_code == 2
    name, options, found, context = asked
    assert name == task
    expected = PRESETS["critical-momenta-online"] if preset is None else vars(presets)[preset]
    assert found == expected
    assert options.seq_length == 20
    assert context.checkpoints is None


def test_ctrl_c_ends_the_workers_and_keeps_what_there_is(
    tmp_path: Path, amid, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steppe.compare.execution.worker_pool.subprocess.Popen", Idle)
    amid(interrupt)
    result = run(*ONE_WORKER, "--workers", 2, "--out-dir", tmp_path)
    assert result.exit_code == 130
    assert "Interrupted. What has finished is kept: run again to go on." in result.output
    assert (tmp_path / "report.html").is_file()
    assert InHouse.ended == ["terminate"] * 2 + ["wait"] * 2 + ["kill"] * 2


def test_a_kill_of_the_command_is_passed_on(
    tmp_path: Path, amid, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("steppe.compare.execution.worker_pool.subprocess.Popen", Idle)
    amid(lambda: signal.raise_signal(signal.SIGTERM))
    assert run(*ONE_WORKER, "--out-dir", tmp_path).exit_code == 128 + signal.SIGTERM
    assert InHouse.ended == ["terminate", "wait", "kill"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_password_is_shown_to_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["steppe", "compare", "--storage", "postgresql://me:s3cret@host/studies"]
    monkeypatch.setattr(sys, "argv", words)
    run(*ONE_WORKER, "--out-dir", tmp_path)
    assert kept(tmp_path).command == "steppe compare --storage 'postgresql://…'"
    assert "s3cret" not in (tmp_path / "report.html").read_text()
    assert not any("--storage" in command for command in InHouse.started)


def test_workers_that_cannot_work_are_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steppe.compare.execution.worker_pool.subprocess.Popen", Broken)
    result = run(*ONE_WORKER, "--out-dir", tmp_path)
    assert result.exit_code == 1
    assert "No worker is left" in result.output
    assert "Worker 0 has ended with status 1: RuntimeError: no memory" in result.output
    assert not kept(tmp_path).trials


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["digit"], "did you mean digits"),
        (["--optimizers", "adamw,dualadm"], "did you mean dualadam"),
        (["--preset", "dual-adam"], "did you mean dualadam"),
        (["--model", "mpl"], "did you mean mlp"),
        (["--scale", "tiny"], 'Invalid value "tiny" for --scale. Choose from: "full", "small".'),
        (["--trials", "0"], "trials must be at least 1, got 0"),
        (["--budget", "0"], "budget must be at least 1, got 0"),
        (["--trials", "11"], "trials must be at least 12, 3 times the budget of 4, got 11"),
        (["--study-seed", "-1"], "study-seed must be from 0 to 2⁶³ − 1, got -1"),
        (["--primary", "luck"], 'Invalid value "luck" for --primary'),
        (["--workers", "-1"], "workers must be at least 0, got -1"),
        (["--threads", "0"], "threads must be from 1 to 1024, got 0"),
        (["--lr", "-1"], "lr must be a finite number above 0, got -1.0"),
        (["--track", "paper"], "track must be one of tensorboard, mlflow, wandb"),
        (["--track", "wandb"], "wandb is missing"),
        (["--data", "/nowhere"], "--data is not for it"),
        (["--seq-length", "35"], "digits has no sequences of tokens: --seq-length is not for it"),
        (["split-mnist", "--seq-length", "35"], "split-mnist has no sequences of tokens"),
        (["shakespeare", "--seq-length", "0"], "seq-length must be at least 1, got 0"),
        (["fashion-mnist", "--data", "/nowhere"], "/nowhere/train-images-idx3-ubyte.gz"),
    ],
    ids=str,
)
def test_a_mistake_is_named_before_anything_is_made(
    tmp_path: Path, options: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    result = run("compare", *options, "--out-dir", tmp_path / "out")
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("steppe: ")
    assert message in line
    assert not (tmp_path / "out").exists()


def test_an_out_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    result = run(*ONE_WORKER, "--out-dir", tmp_path / "out")
    assert result.exit_code == 2
    assert str(tmp_path / "out") in result.stderr


@pytest.mark.parametrize(
    "module", ["sklearn.datasets", "jinja2", "scipy.special", "optuna", "accelerate"]
)
def test_a_missing_package_is_named_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    result = run("compare", "--out-dir", tmp_path / "out")
    assert result.exit_code == 2
    package = module.split(".")[0]
    assert (
        result.stderr
        == f"steppe: {package} is missing: pip install '.[compare]' in a checkout of steppe\n"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--track", "paper"], "track must be one of"),
        (["--device", "abacus"], "device 'abacus' cannot be used here"),
        (["--threads", "0"], "threads must be from 1 to 1024, got 0"),
        (["--study", "other"], "no study called 'other'"),
    ],
    ids=str,
)
def test_a_workers_mistake_costs_no_trial(
    tmp_path: Path, amid, options: list[str], message: str
) -> None:
    """A trial that fails is not tried again: here it would be the worker's fault."""
    amid(interrupt)
    run(*FIXED, "--workers", 0, "--out-dir", tmp_path)
    result = run("worker", "--storage", tmp_path, "--out-dir", tmp_path, *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not kept(tmp_path).trials
