"""Edited code makes other runs."""

import importlib
import json
import shutil
import sys
from pathlib import Path

import pytest

import steppe
from steppe.compare.optimizers import Recipe, find_recipe
from steppe.compare.run import Run
from steppe.compare.sources import package_source, steppe_source

SUBCLASS = """
import torch
from their_base import Base
class Mine(Base):
    def __init__(self, params, lr=0.1, momentum={momentum}, call=print):
        super().__init__(params, lr=lr, momentum=momentum)
"""


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    source = Path(steppe.__file__).parent
    return Path(
        shutil.copytree(source, tmp_path / "steppe", ignore=shutil.ignore_patterns("__pycache__"))
    )


def test_the_running_package_is_hashed(make_run, monkeypatch: pytest.MonkeyPatch) -> None:
    before = make_run().settings
    assert steppe_source() in before
    monkeypatch.setattr("steppe.compare.run.steppe_source", lambda: "edited")
    assert make_run().settings != before


@pytest.mark.parametrize(
    "name",
    [
        "rules.py",
        "engines/eager.py",
        "optim/dual_adam.py",
        "landscape/sharpness.py",
        "compare/data.py",
        "compare/models.py",
        "compare/optimizers.py",
        "compare/tasks.py",
        "compare/train.py",
    ],
)
def test_what_changes_numbers_changes_the_hash(copied: Path, name: str) -> None:
    before = package_source(copied)
    with (copied / name).open("a") as file:
        file.write("# edited\n")
    assert package_source(copied) != before


def test_what_only_prints_does_not(copied: Path) -> None:
    before = package_source(copied)
    (copied / "compare/report.py").write_text("")
    (copied / "engines/__pycache__").mkdir()
    (copied / "engines/__pycache__/eager.pyc").write_text("")
    assert package_source(copied) == before


@pytest.fixture
def identity(tmp_path: Path, make_setup, monkeypatch: pytest.MonkeyPatch):
    """Write a module and the one it builds on, and return the identity of a run with its class."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def identify(momentum: float = 0.5, base: str = "") -> str:
        (tmp_path / "their_base.py").write_text(f"from torch.optim import SGD as Base\n{base}")
        (tmp_path / "mine.py").write_text(SUBCLASS.format(momentum=momentum))
        importlib.invalidate_caches()
        for name in ("mine", "their_base"):
            sys.modules.pop(name, None)
        return Run(make_setup(), find_recipe("mine:Mine"), seed=0).settings

    yield identify
    for name in ("mine", "their_base"):
        sys.modules.pop(name, None)


def test_an_edited_class_is_another_one(identity) -> None:
    first = identity(momentum=0.5)
    assert identity(momentum=0.5) == first
    source = json.loads(first)["optimizer"]["source"]
    assert json.loads(identity(momentum=0.6))["optimizer"]["source"] != source


def test_so_is_one_whose_base_was_edited(identity) -> None:
    own = "class Base(Base):\n    pass\n"
    assert identity(base=own) != identity(base=own + "# edited\n")


def test_defaults_that_nobody_set_are_settings(make_setup) -> None:
    recipe = find_recipe("adamcm")
    arguments = recipe.settings(None, 0.1)["arguments"]
    assert arguments["capacity"] == "5"
    assert arguments["weight_decay"] == "0.0"
    assert recipe.settings(0.5, 0.1)["arguments"]["lr"] == "0.5"


def test_a_default_has_the_same_text_in_every_process() -> None:
    class Odd(steppe.AdamCM):
        def __init__(self, params, lr=0.1, key=lambda x: x, thing=object()) -> None:  # noqa: B008
            super().__init__(params, lr=lr)

    arguments = Recipe("odd", Odd).settings(None, 0.1)["arguments"]
    assert arguments["thing"] == "<object object>"
    assert "0x" not in arguments["key"]
