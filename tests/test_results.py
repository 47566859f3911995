"""What README and docs/ say of studies is what the committed files hold."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from steppe.compare.records.results import load

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "docs" / "results").glob("*.json"))


def _tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("results", ROOT / "benchmarks" / "results.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TOOL = _tool()


@pytest.mark.parametrize("page", TOOL.PAGES, ids=lambda page: page.name)
def test_pages_say_what_the_files_hold(page: Path) -> None:
    assert TOOL.rewritten(page.read_text()) == page.read_text()


def test_a_block_that_is_not_true_is_seen() -> None:
    page = (ROOT / "docs" / "results.md").read_text()
    assert TOOL.rewritten(page.replace("adamw ", "adamx ")) == page


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_studies_are_whole_and_fair(path: Path) -> None:
    study = load(path)
    assert study.complete
    tuned = {each.name: len(study.trials_of(each.name, "tune")) for each in study.contenders}
    assert {count for name, count in tuned.items() if not _follows(study, name)} == {study.budget}
    assert {len(study.trials_of(each.name, "test")) for each in study.contenders} == {study.seeds}


@pytest.mark.parametrize("name", ["digits", "mnist-5k", "fashion-mnist"])
def test_what_is_promised_is_there(name: str) -> None:
    study = load(ROOT / "docs" / "results" / f"{name}.json")
    assert study.budget == 8
    assert study.seeds >= 5
    wanted = {"adamw", "adam+warmup", "dualadam", "dualadam-scale-free", "adamcm", "adamcg"}
    assert wanted | {"adamw+sam"} <= {each.name for each in study.contenders}


@pytest.mark.parametrize(
    ("name", "budget", "seeds"),
    [("shakespeare", 5, 5), ("split-mnist", 8, 10), ("finetune-lora", 3, 3)],
)
def test_language_and_streams_are_there(name: str, budget: int, seeds: int) -> None:
    study = load(ROOT / "docs" / "results" / f"{name}.json")
    assert (study.budget, study.seeds) == (budget, seeds)
    wanted = {"adamw", "adam+warmup", "dualadam", "adamcm", "adamcg", "adamw+sam"}
    assert wanted <= {each.name for each in study.contenders}


@pytest.mark.parametrize("name", ["finetune-lora", "finetune-full"])
def test_fine_tuning_tries_the_same_learning_rates_for_all(name: str) -> None:
    study = load(ROOT / "docs" / "results" / f"{name}.json")
    assert {"adamw", "adam+warmup", "dualadam"} <= {each.name for each in study.contenders}
    tuned = [each.name for each in study.contenders if not each.follows]
    rates = [{trial.settings["lr"] for trial in study.trials_of(each, "tune")} for each in tuned]
    assert len(rates[0]) >= 3
    assert all(each == rates[0] for each in rates)


def test_pictures_are_there() -> None:
    for page in TOOL.PAGES:
        for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text()):
            assert (page.parent / picture).is_file(), picture


def _follows(study, name: str) -> str:
    return next(each.follows for each in study.contenders if each.name == name)
