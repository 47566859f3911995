"""What CONTRIBUTING says of adding an optimizer, an engine, an instrument or a task does run."""

from pathlib import Path

import pytest

from helpers.warm_python import run

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "examples" / "extending").glob("*.py"))


@pytest.mark.thorough
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_an_addition_works(script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each script compares what it adds with what is known, and fails where they differ."""
    if script.stem == "add_a_task":
        pytest.importorskip("accelerate")
    monkeypatch.chdir(tmp_path)
    assert run(script).strip()


def test_contributing_names_every_script() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert len(SCRIPTS) == 4
    assert all(f"examples/extending/{script.name}" in text for script in SCRIPTS)
