"""The rules of the house: docs/architecture.md says why, and what lives where."""

import ast
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

import steppe

SOURCE = Path(steppe.__file__).parent
REPOSITORY = SOURCE.parents[1]

#: Rooms by floor: each imports from floors below its own only. ``_shared`` is below all of them.
FLOORS = (
    {"rules"},
    {"_engines"},
    {"optim", "landscape", "functions"},
    {"theory"},
    {"compare", "bench", "integrations"},
    {"play"},
    {"cli"},
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

#: The same within ``compare``; each of them also imports from those before it.
COMPARE_ORDER = (
    "records",
    "models",
    "data",
    "metrics",
    "tasks",
    "training",
    "planning",
    "execution",
    "report",
    "python",
    "cli",
)

MOST_LINES = 400
MOST_FUNCTION_LINES = 50
MOST_CLASS_LINES = 250


class Import(NamedTuple):
    """One imported name: in which file, from which module, and what."""

    path: Path
    module: str
    name: str

    @property
    def room(self) -> str:
        """The room that is imported from."""
        parts = [*self.module.split("."), self.name]
        return parts[1]

    @property
    def is_past_the_face(self) -> bool:
        """Whether it names a module of another room instead of what that room exports."""
        inside = self.module.split(".")[2:]
        if self.room == "_shared":
            # Each of its modules is a face of its own, and so are those of its page.
            return len(inside) > (2 if inside[:1] == ["page"] else 1)
        if self.room == "integrations":
            # Each module imports a framework, and is a face of its own.
            return len(inside) > 1 or "".join(inside).startswith("_")
        return bool(inside)

    def __str__(self) -> str:
        where = self.path.relative_to(REPOSITORY).as_posix()
        return f"{where}: from {self.module} import {self.name}"


def room_of(path: Path) -> str:
    """Return the first folder or module under steppe, or the folder beside it."""
    inside = path.is_relative_to(SOURCE)
    first = path.relative_to(SOURCE if inside else REPOSITORY).parts[0]
    return first.removesuffix(".py") if inside else f"/{first}"


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def source_files() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def files() -> list[Path]:
    beside = [REPOSITORY / name for name in ("figures", "benchmarks", "examples")]
    return source_files() + sorted(path for folder in beside for path in folder.rglob("*.py"))


def imports(path: Path) -> Iterator[Import]:
    """Yield what a file imports from steppe, also inside of functions and for types alone."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("steppe"):
            for alias in node.names:
                if node.module != "steppe" or alias.name in FLOOR or alias.name == "_shared":
                    yield Import(path, str(node.module), alias.name)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("steppe."):
                    module, _, name = alias.name.rpartition(".")
                    yield Import(path, module, name)


def test_every_room_has_its_floor() -> None:
    found = {room_of(path) for path in source_files()}
    assert found == FLOOR.keys() | {"_shared", "__init__", "__main__"}


def test_imports_run_one_way() -> None:
    """A room imports from the floors below it; _shared from nothing but steppe's own face."""
    upwards = [
        str(each)
        for path in source_files()
        for each in imports(path)
        if (room := room_of(path)) in FLOOR or room == "_shared"
        if each.room not in (room, "_shared")
        if room == "_shared" or FLOOR[each.room] >= FLOOR[room]
    ]
    assert not upwards, "\n".join(upwards)


def test_rooms_are_entered_by_their_face() -> None:
    """The examples of extending steppe stand for files that would lie in its rooms."""
    past = [
        str(each)
        for path in files()
        if path.parent != REPOSITORY / "examples" / "extending"
        for each in imports(path)
        if each.room not in (room_of(path), "rules") and each.is_past_the_face
    ]
    assert not past, "\n".join(past)


def test_imports_within_compare_run_one_way() -> None:
    order = {name: index for index, name in enumerate(COMPARE_ORDER)}
    upwards = []
    for path in (SOURCE / "compare").rglob("*.py"):
        own = path.relative_to(SOURCE / "compare").parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        for each in imports(path):
            parts = [*each.module.split("."), each.name]
            if parts[1] == "compare" and order[parts[2]] > order[own]:
                upwards.append(str(each))
    assert not upwards, "\n".join(upwards)


def test_rooms_show_little_at_their_top() -> None:
    def top(room: str) -> list[str]:
        entries = (SOURCE / room).iterdir()
        return [each.name for each in entries if each.name != "__pycache__"]

    assert len(top("compare")) <= 12
    assert len(top("_engines")) <= 7


def test_a_class_name_means_one_thing() -> None:
    classes = defaultdict(list)
    for path in source_files():
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ClassDef):
                classes[node.name].append(path.relative_to(SOURCE).as_posix())
    assert not {name: where for name, where in classes.items() if len(where) > 1}


def test_files_functions_and_classes_are_short() -> None:
    too_long = []
    for path in files():
        where = path.relative_to(REPOSITORY).as_posix()
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MOST_LINES and path.name != "rules.py":
            too_long.append(f"{where}: {lines} lines")
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                if (count := lines_of(node) - docstring_lines(node)) > MOST_FUNCTION_LINES:
                    too_long.append(f"{where}: {node.name} has {count} lines")
            elif isinstance(node, ast.ClassDef) and lines_of(node) > MOST_CLASS_LINES:
                too_long.append(f"{where}: class {node.name} has {lines_of(node)} lines")
    assert not too_long, "\n".join(too_long)


def lines_of(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def docstring_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return lines_of(node.body[0]) if ast.get_docstring(node, clean=False) is not None else 0


def test_instruments_and_theory_know_no_optimizer() -> None:
    known = [
        str(each)
        for room in ("landscape", "theory")
        for path in (SOURCE / room).rglob("*.py")
        for each in imports(path)
        if each.room == "optim"
    ]
    assert not known, "\n".join(known)


def run_without(packages: list[str], code: str) -> None:
    """Run code in a process that cannot import some packages."""
    blocked = "".join(f"sys.modules[{name!r}] = None\n" for name in packages)
    command = [sys.executable, "-W", "error", "-c", f"import sys\n{blocked}{code}"]
    subprocess.run(command, check=True)


STUDY_PACKAGES = [
    *("optuna", "sqlalchemy", "accelerate", "plotly", "torchvision", "timm", "psycopg"),
    *("transformers", "peft", "gguf", "scipy", "sklearn", "matplotlib", "mlxtend"),
    *("tensorboard", "pytorch_optimizer", "schedulefree"),
]


@pytest.mark.thorough
def test_the_core_runs_without_the_extras() -> None:
    run_without(
        [*STUDY_PACKAGES, "cyclopts", "cattrs", "platformdirs", "rich", "triton", "pandas"],
        "import torch, steppe, steppe.functions, steppe.theory\n"
        "p = torch.ones(2, requires_grad=True)\n"
        "steppe.SAM(steppe.AdamCM([p])).step(lambda: p.square().sum().backward())\n"
        "steppe.functions.ackley()(torch.ones(2))\n"
        "steppe.theory.escape_time('adam', lr=1e-3, batch_size=1, barrier=1.0, h_min=1.0, "
        "h_saddle=1.0, s=0.5)\n",
    )


@pytest.mark.thorough
def test_training_imports_without_what_only_studies_need() -> None:
    """A study's optional packages are imported where they are used."""
    run_without(
        STUDY_PACKAGES, "import steppe.compare.training.train, steppe.compare.cli.run_study\n"
    )
