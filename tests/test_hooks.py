"""Git's hooks run what ``make lint types`` runs, and nothing from elsewhere."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

needs_tools = pytest.mark.skipif(
    shutil.which("git") is None or shutil.which("make") is None, reason="git and make"
)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Make a repository with these hooks, whose make writes down what it was asked for."""
    shutil.copy(ROOT / ".pre-commit-config.yaml", tmp_path)
    (tmp_path / "Makefile").write_text("lint types:\n\t@echo $@ >> asked\n.PHONY: lint types\n")
    for command in ("init --quiet", "add Makefile .pre-commit-config.yaml"):
        subprocess.run(["git", *command.split()], cwd=tmp_path, check=True)
    return tmp_path


def run_hooks(repository: Path, stage: str) -> list[str]:
    """Run the hooks of a stage; return what make was asked for."""
    environment = {
        **os.environ,
        "PRE_COMMIT_HOME": str(repository / "cache"),
        "PYTHONWARNINGS": "default",
        "MAKEFLAGS": "",
    }
    process = subprocess.run(
        [sys.executable, "-m", "pre_commit", "run", "--all-files", "--hook-stage", stage],
        cwd=repository,
        env={k: v for k, v in environment.items() if not k.startswith("GIT_")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return (repository / "asked").read_text().split()


@needs_tools
@pytest.mark.parametrize(
    ("stage", "asked"), [("pre-commit", ["lint"]), ("pre-push", ["lint", "types"])]
)
def test_hooks_ask_make_for_lint_and_types(repository: Path, stage: str, asked: list[str]) -> None:
    assert run_hooks(repository, stage) == asked


@needs_tools
def test_a_failing_check_stops_the_commit(repository: Path) -> None:
    (repository / "Makefile").write_text("lint:\n\t@false\n")
    with pytest.raises(AssertionError, match="Failed"):
        run_hooks(repository, "pre-commit")


@pytest.mark.skipif(shutil.which("make") is None, reason="make")
def test_make_runs_the_linters_and_the_type_checker_of_the_lock() -> None:
    process = subprocess.run(
        ["make", "--no-print-directory", "--dry-run", "lint", "types"],
        cwd=ROOT,
        env={**os.environ, "MAKEFLAGS": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    commands = process.stdout.splitlines()
    expected = [".venv/bin/ruff check .", ".venv/bin/ruff format --check .", ".venv/bin/mypy"]
    assert commands[-3:] == expected
    lock = (ROOT / "requirements.lock").read_text()
    assert all(f"\n{package}==" in lock for package in ("ruff", "mypy", "pre_commit"))
