"""Edited code makes other runs."""

import importlib
import json
import shutil
import sys
from pathlib import Path

import pytest

import steppe
from helpers.warm_python import run
from steppe._shared import source_hash
from steppe._shared.recipes import Recipe, find_recipe
from steppe._shared.source_hash import package_source, steppe_source

SUBCLASS = """
import torch
from their_base import Base
class Mine(Base):
    def __init__(self, params, lr=0.1, momentum={momentum}, call=print):
        super().__init__(params, lr=lr, momentum=momentum)
"""

#: What each text does.
PARSED: dict[bytes, bytes] = {}


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    source = Path(steppe.__file__).parent
    return Path(
        shutil.copytree(source, tmp_path / "steppe", ignore=shutil.ignore_patterns("__pycache__"))
    )


@pytest.fixture(autouse=True)
def _each_text_is_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parse of a copy what was edited: the whole package takes most of a second."""
    parse = source_hash._source_behaviour

    def parse_once(path: Path) -> bytes:
        text = path.read_bytes()
        if text not in PARSED:
            PARSED[text] = parse(path)
        return PARSED[text]

    monkeypatch.setattr(source_hash, "_source_behaviour", parse_once)


@pytest.mark.thorough
def test_all_that_a_run_computes_with_is_hashed(copied: Path) -> None:
    """What training imports, however indirectly, is hashed, or is known to change no number."""
    harmless = {
        "steppe/__init__.py",
        "steppe/compare/__init__.py",
        "steppe/compare/records/choices.py",
        "steppe/compare/planning/__init__.py",
        "steppe/compare/records/__init__.py",
        "steppe/compare/records/best_of_k.py",
        "steppe/compare/records/json_format.py",
        "steppe/compare/records/phases.py",
        "steppe/compare/records/outcomes.py",
        "steppe/compare/records/results.py",
        "steppe/compare/records/validation.py",
    }
    script = copied.parent / "imported.py"
    script.write_text(
        "import sys, steppe.compare.training.train\n"
        "print(*(m.__file__ for n, m in sys.modules.items() if n.partition('.')[0] == 'steppe'))"
    )
    root = Path(steppe.__file__).parent.parent
    files = {Path(file).relative_to(root).as_posix() for file in run(script).split()}
    assert "steppe/compare/training/run.py" in files
    before = package_source(copied)
    for file in sorted(files - harmless):
        if file.startswith("steppe/_shared/"):
            continue
        with (copied.parent / file).open("a") as opened:
            opened.write("EDITED = True\n")
        after = package_source(copied)
        assert after != before, file
        before = after


def test_the_running_package_is_hashed() -> None:
    assert steppe_source() == package_source(Path(steppe.__file__).parent)


@pytest.mark.parametrize(
    "name",
    [
        "rules.py",
        "_engines/eager/engine.py",
        "optim/dual_adam.py",
        "landscape/surfaces/sharpness.py",
        "compare/data/datasets.py",
        "compare/models/image_models.py",
        "_shared/recipes.py",
        "compare/tasks/makers.py",
        "compare/training/train.py",
        "compare/planning/controls.py",
        "compare/planning/search_spaces.py",
        "compare/records/packed_numbers.py",
    ],
)
def test_what_changes_numbers_changes_the_hash(copied: Path, name: str) -> None:
    before = package_source(copied)
    with (copied / name).open("a") as file:
        file.write("EDITED = True\n")
    assert package_source(copied) != before


def test_a_package_without_sources_is_refused(tmp_path: Path) -> None:
    """Studies of different code would go for one."""
    with pytest.raises(FileNotFoundError, match="has no source files"):
        package_source(tmp_path / "steppe.zip" / "steppe")


def test_what_only_prints_does_not(copied: Path) -> None:
    before = package_source(copied)
    (copied / "compare/report/terminal.py").write_text("")
    (copied / "_engines/__pycache__").mkdir()
    (copied / "_engines/__pycache__/dispatch.pyc").write_text("")
    assert package_source(copied) == before


def test_prose_does_not(copied: Path) -> None:
    """Docstrings, comments and layout of modules, classes and functions may be mended."""
    file = copied / "rules.py"
    file.write_text(
        '"""Old."""\nclass A:\n    """Old."""\n    def f(self):\n'
        '        """Old."""\n        return 1\n'
    )
    before = package_source(copied)
    file.write_text(
        '"""New."""\n\n\nclass A:  # why\n    """New."""\n\n    def f(self):\n        return (1)\n'
    )
    assert package_source(copied) == before
    file.write_text(file.read_text().replace("(1)", "2"))
    assert package_source(copied) != before


@pytest.fixture
def identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write a module and the one it builds on, and return the identity of its class."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def identify(momentum: float = 0.5, base: str = "") -> dict[str, object]:
        (tmp_path / "their_base.py").write_text(f"from torch.optim import SGD as Base\n{base}")
        (tmp_path / "mine.py").write_text(SUBCLASS.format(momentum=momentum))
        importlib.invalidate_caches()
        for name in ("mine", "their_base"):
            sys.modules.pop(name, None)
        return find_recipe("mine:Mine").identity()

    yield identify
    for name in ("mine", "their_base"):
        sys.modules.pop(name, None)


def test_an_edited_class_is_another_one(identity) -> None:
    first = identity(momentum=0.5)
    assert identity(momentum=0.5) == first
    assert identity(momentum=0.6)["source"] != first["source"]


def test_so_is_one_whose_base_was_edited(identity) -> None:
    own = "class Base(Base):\n    pass\n"
    assert identity(base=own) != identity(base=own + "EDITED = True\n")


def test_so_is_one_of_another_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recipe = find_recipe("adabelief")
    assert recipe.source == find_recipe("AdaBelief").source
    module = sys.modules[recipe.cls.__module__]
    edited = tmp_path / "edited.py"
    edited.write_text(Path(module.__file__).read_text() + "EDITED = True\n")
    monkeypatch.setattr(module, "__file__", str(edited))
    assert find_recipe("adabelief").source != recipe.source


def test_everything_that_a_name_stands_for_is_its_identity() -> None:
    names = ["adam", "adamw", "adam+warmup", "adam+sam", "adamcm", "adamcm-int8", "adamcm-authors"]
    found = [json.dumps(find_recipe(name).identity(), sort_keys=True) for name in names]
    assert len(set(found)) == len(names)
    arguments = find_recipe("adamcm").identity()["arguments"]
    assert (arguments["capacity"], arguments["weight_decay"]) == ("5", "0.0")
    assert find_recipe("sgd-momentum").identity()["arguments"]["momentum"] == "0.9"


def test_a_default_has_the_same_text_in_every_process() -> None:
    class Odd(steppe.AdamCM):
        def __init__(self, params, lr=0.1, key=lambda x: x, thing=object()) -> None:  # noqa: B008
            super().__init__(params, lr=lr)

    arguments = Recipe("odd", Odd).identity()["arguments"]
    assert arguments["thing"] == "<object object>"
    assert "0x" not in arguments["key"]


def test_so_is_one_whose_helper_was_edited(identity, tmp_path: Path) -> None:
    base = "from their_helper import direction\nclass Base(Base):\n    pass\n"

    def with_helper(factor: int) -> dict[str, object]:
        (tmp_path / "their_helper.py").write_text(f"def direction(g):\n    return {factor} * g\n")
        sys.modules.pop("their_helper", None)
        return identity(base=base)

    first = with_helper(1)
    assert with_helper(1) == first
    assert with_helper(2) != first
    sys.modules.pop("their_helper", None)
