"""Each example of a task goes from its file to a page, by one command."""

import os
from pathlib import Path

import pytest

from steppe.compare import load
from steppe.compare.cli.compare import compare
from steppe.compare.planning.options import StudyOptions

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples" / "tasks").glob("*.py"))
# torchmetrics and timm import it, and would fail where torch is a CPU build.
NEED_TORCHVISION = {"images", "text_classifier"}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_goes_from_its_file_to_a_page(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if path.stem in NEED_TORCHVISION:
        from helpers import torchvision_shim  # noqa: F401

        workers = Path(__file__).parents[1] / "helpers" / "torchvision_in_workers"
        elsewhere = os.environ.get("PYTHONPATH", "")
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(workers), elsewhere])))
    monkeypatch.chdir(tmp_path)
    options = StudyOptions(["adamw"], budget=1, trials=3, epochs=1)
    compare(f"{path}:task", options=options, workers=1, out_dir=tmp_path / "out")
    assert "<!DOCTYPE html>" in (tmp_path / "out" / "report.html").read_text()
    study = load(tmp_path / "out")
    assert study.complete
    trials = study.results.trials
    assert not [trial.error for trial in trials if trial.error]
    # Curvature was measured of the pool's first trials.
    assert any(t.outcome.curvature.sharpness == t.outcome.curvature.sharpness for t in trials)
    assert all(t.outcome.samples.test_scores for t in trials if t.outcome)


def test_there_are_examples() -> None:
    assert [path.stem for path in EXAMPLES] == [
        "autoencoder",
        "images",
        "regression",
        "sequences",
        "text_classifier",
    ]
