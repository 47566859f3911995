"""The command's face: what needs no extra, help, completion, and errors in arguments."""

import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

import steppe
from helpers import synthetic_studies as studies
from helpers.command_line import run_steppe
from helpers.synthetic_studies import scores
from steppe.cli.app import load_commands
from steppe.cli.commands import COMMANDS
from steppe.compare.planning.options import StudyOptions
from steppe.compare.planning.presets import PRESETS
from steppe.compare.records.choices import PRESET_NAMES, TASK_NAMES
from steppe.compare.tasks.makers import TASKS
from steppe.functions import FUNCTIONS
from steppe.play.descent import SCHEDULES
from steppe.play.options import FUNCTION_NAMES, SCHEDULE_NAMES

EXTRAS = ["cyclopts", "rich", "optuna", "sqlalchemy", "matplotlib", "scipy", "plotly"]
EXTRAS += ["accelerate", "cattrs", "platformdirs", "jinja2", "sklearn", "transformers"]
# A study's options and those of where it runs.
OPTIONS = [f"--{each.name.replace('_', '-')}" for each in fields(StudyOptions)]


def in_a_new_process(code: str, *missing: str) -> "subprocess.CompletedProcess[str]":
    block = "".join(f"sys.modules[{name!r}] = None\n" for name in missing)
    source = f"import sys\n{block}from steppe.cli import main\n{code}\n"
    command = [sys.executable, "-W", "error", "-c", source]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("argument", ["--help", "-h", "--version", None])
def test_help_and_version_import_neither_torch_nor_an_extra(argument: str | None) -> None:
    """Torch takes seconds to import: without it, help is there at once."""
    slow = ["torch", "numpy", "numba", *EXTRAS]
    arguments = [] if argument is None else [argument]
    code = f"main({arguments})\nprint(*sorted({set(slow)} & sys.modules.keys()), file=sys.stderr)"
    done = in_a_new_process(code)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == ""
    if argument == "--version":
        assert done.stdout == f"steppe {steppe.__version__}\n"
    else:
        for name, command in COMMANDS.items():
            assert re.search(rf"^  {name} +{re.escape(command.summary)}$", done.stdout, re.M)


@pytest.mark.thorough
def test_the_doctor_needs_the_core_install_only() -> None:
    done = in_a_new_process("main(['doctor'])", *EXTRAS)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^cyclopts +.* +all commands but doctor$", done.stdout, re.M)
    assert re.search(r"^DualAdam +\w+", done.stdout, re.M)


@pytest.mark.parametrize("missing", ["cyclopts", "rich", "optuna", "cattrs"])
def test_without_an_extra_a_command_says_how_to_get_it(missing: str) -> None:
    done = in_a_new_process("main(['report', 'nothing.sqlite'])", missing)
    assert done.returncode != 0
    assert (
        done.stderr
        == f"steppe: {missing} is missing: pip install '.[compare]' in a checkout of steppe\n"
    )


def test_a_study_in_a_file_is_reported_without_torch(tmp_path: Path) -> None:
    path = tmp_path / "study.json"
    studies.study({"adamw": scores(0.9, 0.8, 0.7), "sgd": scores(0.6, 0.7, 0.8)}).save(path)
    done = in_a_new_process(f"main(['report', {str(path)!r}])", "torch", "numba", "scipy.stats")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report.html").is_file()


def test_an_unknown_command_gets_the_nearest_name() -> None:
    result = run_steppe("compar")
    assert result.exit_code == 2
    assert result.stderr.startswith("steppe: no command is called 'compar': did you mean compare?")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_overview_says_what_the_commands_say(name: str) -> None:
    summary = (inspect.getdoc(COMMANDS[name].load()) or "").splitlines()[0]
    assert COMMANDS[name].summary == summary


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained(name: str) -> None:
    result = run_steppe(name, "--help", COLUMNS="300")
    assert result.exit_code == 0
    rows = [line.strip("│ ") for line in result.output.splitlines() if line.startswith("│")]
    options = [row for row in rows if re.match(r"(\* +)?(--|[A-Z])", row)]
    assert len(options) >= {"doctor": 1, "bench": 5}.get(name, 8)
    for row in options:
        explanation = re.split(r"\s{2,}", row.lstrip("* "))[1:]
        assert explanation, row
        assert re.match(r"\w", explanation[0]), row


def test_help_groups_a_studys_options_with_their_limits_and_defaults() -> None:
    output = run_steppe("compare", "--help", COLUMNS="300").output
    groups = ["Study", "Model and data", "Training", "Where it runs", "What it writes"]
    assert [output.index(f"─ {title} ─") for title in groups] == sorted(
        output.index(f"─ {title} ─") for title in groups
    )
    for option in OPTIONS:
        assert re.search(rf"│ {option} ", output), option
    assert "--max-grad-norm X>0" in output
    assert "[choices: no, bf16, fp16]" in output
    assert "[default: full]" in output
    for word in ("12 500 steps", "16 %", "+sam"):
        assert word in output


def examples() -> Iterator[list[str]]:
    for command in COMMANDS.values():
        yield from (
            line.split()[1:]
            for line in (inspect.getdoc(command.load()) or "").splitlines()
            if line.startswith("    steppe ")
        )


@pytest.mark.parametrize("arguments", list(examples()), ids=" ".join)
def test_examples_of_help_are_shown_and_can_be_typed(arguments: list[str]) -> None:
    app = load_commands(arguments[:1])
    app.parse_args(arguments, exit_on_error=False, print_error=False)
    shown = run_steppe(arguments[0], "--help", COLUMNS="200").output
    assert " ".join(["steppe", *arguments]) in shown


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("--clip", "--max-grad-norm"),
        ("--accumulate", "--grad-accumulation"),
        ("--length", "--seq-length"),
        ("--out", "--out-dir"),
    ],
)
def test_old_names_are_refused_with_the_new_one(tmp_path: Path, old: str, new: str) -> None:
    for typed in ([old, "3"], [f"{old}=3"]):
        result = run_steppe("compare", "digits", "--out-dir", tmp_path / "out", *typed)
        assert result.exit_code == 2
        assert result.stderr.startswith(f"steppe: {old} has another name now: {new}")
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-grad-nrm", "3"], "Unknown option: --max-grad-nrm. Did you mean --max-grad-norm?"),
        (["--trials", "many"], 'Invalid value for --trials: unable to convert "many" into int.'),
        (["--trials"], "--trials requires an argument"),
        (["--scale", "tiny"], 'Invalid value "tiny" for --scale. Choose from: "full", "small".'),
    ],
)
def test_a_mistake_in_the_arguments_is_said_in_one_line(arguments: list[str], message: str) -> None:
    result = run_steppe("compare", "digits", *arguments)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("steppe: ")
    assert message in line


def test_of_a_repeated_option_the_last_one_counts() -> None:
    typed = ["compare", "--trials", "30", "--trials", "40", "--optimizers", "sgd", "--optimizers"]
    _, bound, _ = load_commands(["compare"]).parse_args([*typed, "adamw,adamcm"])
    assert bound.arguments["options"] == StudyOptions(("adamw", "adamcm"), trials=40)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_learn_commands_and_options(tmp_path: Path, shell: str) -> None:
    script = tmp_path / "completion"
    asked = ("--install-completion", "--shell", shell, "--output", script)
    # It also has the shell's own start-up file read the script.
    result = run_steppe(*asked, HOME=str(tmp_path))
    assert result.exit_code == 0, result.output
    text = script.read_text()
    for word in (*COMMANDS, *(option.lstrip("-") for option in OPTIONS)):
        assert word in text


SLOW = ["torch", "numba", "optuna", "matplotlib", "scipy"]
SLOW_IMPORTS = f"print(*sorted({set(SLOW)} & sys.modules.keys()), file=sys.stderr)"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_commands_help_does_not_wait_for_torch(name: str) -> None:
    done = in_a_new_process(f"main([{name!r}, '--help'])\n{SLOW_IMPORTS}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"Usage: steppe {name}")
    assert done.stderr.strip() == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["compare", "digit"],
        ["compare", "--preset", "dual"],
        ["compare", "--trials", "0"],
        ["compare", "--threads", "0"],
        ["compare", "--workers", "-1"],
        ["compare", "--track", "paper"],
        ["worker", "--storage", "study.sqlite", "--track", "paper"],
        ["profile", "run.pt", "--task", "digit"],
        ["profile", "run.pt", "--task", "digits", "--samples", "0"],
        ["play", "akley"],
        ["play", "ackley", "--lr", "fast"],
        ["play", "ackley", "--switch", "2"],
        ["play", "ackley", "--starts", "0"],
        ["bench", "resnet"],
        ["bench", "--steps", "0"],
        ["report"],
    ],
    ids=" ".join,
)
def test_a_usage_error_does_not_wait_for_torch(arguments: list[str]) -> None:
    code = f"try:\n    main({arguments})\nfinally:\n    {SLOW_IMPORTS}"
    done = in_a_new_process(code)
    assert done.returncode == 2
    message, imported = done.stderr.splitlines()
    assert message.startswith("steppe: ")
    assert imported == ""


def test_names_that_help_lists_are_the_names_there_are() -> None:
    assert tuple(TASKS) == TASK_NAMES
    assert tuple(PRESETS) == PRESET_NAMES
    assert tuple(FUNCTIONS) == FUNCTION_NAMES
    assert tuple(SCHEDULES) == SCHEDULE_NAMES


@pytest.mark.parametrize(
    ("name", "usage"),
    [
        ("compare", "[TASK] [OPTIONS]"),
        ("bench", "[MODELS...] [OPTIONS]"),
        ("play", "FUNCTION [OPTIONS]"),
        ("profile", "CHECKPOINT --task TASK [OPTIONS]"),
    ],
)
def test_usage_names_the_arguments(name: str, usage: str) -> None:
    first = run_steppe(name, "--help").output.splitlines()[0]
    assert first == f"Usage: steppe {name} {usage}"
