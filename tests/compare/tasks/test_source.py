"""Tasks in users' files: found, made with options, told apart by what they do, and refused."""

import importlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from steppe.compare.tasks.source import find_task
from steppe.compare.tasks.task import Task
from steppe.compare.tasks.trace import TaskError

TASK = '''\
"""A line."""

import torch
from torch import nn
from steppe.compare import Task

x = torch.linspace(-1, 1, 20)[:, None]


def make(**changes):
    """Make it."""
    return Task(**{
        "name": "line",
        "model": lambda: nn.Linear(1, 1),
        "train": (x, 2 * x),
        "validation": 0.2,
        "test": 0.2,
        "loss": nn.functional.mse_loss,
        **changes,
    })


task = make()
'''


@pytest.fixture(autouse=True)
def _imports_are_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget the modules of the test's directory, and what was put on the path for them."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield
    forget(tmp_path)


def forget(folder: Path) -> None:
    for name, module in list(sys.modules.items()):
        file = vars(module).get("__file__")
        if file is not None and Path(file).is_relative_to(folder):
            del sys.modules[name]
    importlib.invalidate_caches()


def written(path: Path, text: str = TASK) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def source_of(path: Path, text: str | None = None) -> str:
    """Return the hash of a file's task, imported anew, after the file was written anew."""
    if text is not None:
        path.write_text(text)
    forget(path.parent)
    return find_task(f"{path}:task").source


def test_a_task_in_a_file_is_found(tmp_path: Path) -> None:
    path = written(tmp_path / "work" / "mytask.py")
    found = find_task(f"{path}:task")
    assert found.name == f"{path}:task"
    assert found.label == "mytask.py:task"
    assert found.location == f"{path}:task"
    assert re.fullmatch("[0-9a-f]{8,}", found.source)
    task = found.task()
    assert isinstance(task, Task)
    assert task is find_task(f"{path}:task").task()
    assert len(task.load().data.train) == 12


def test_a_relative_path_is_that_of_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "work" / "mytask.py")
    monkeypatch.chdir(tmp_path)
    found = find_task("work/mytask.py:task")
    assert (found.label, found.location) == ("mytask.py:task", f"{path}:task")
    assert found.source == find_task(f"{path}:task").source


def test_a_file_imports_from_beside_it_as_a_script_does(tmp_path: Path) -> None:
    written(tmp_path / "beside.py", "EPOCHS = 7\n")
    path = written(
        tmp_path / "mytask.py", "import beside\n" + TASK + "other = make(epochs=beside.EPOCHS)\n"
    )
    assert find_task(f"{path}:other").task().epochs == 7


def test_a_task_in_a_module_of_the_current_directory_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path / "lines" / "__init__.py", "")
    written(tmp_path / "lines" / "straight.py")
    monkeypatch.chdir(tmp_path)
    found = find_task("lines.straight:task")
    assert found.label == found.location == "lines.straight:task"
    assert found.task().name == "line"
    assert found.source
    # The directory above it is on the path once, however often it is asked for.
    find_task("lines.straight:task")
    assert sys.path.count(str(tmp_path)) == 1


FUNCTIONS = (
    TASK
    + """
def sized(*, scale="full", samples=None, model="thin"):
    epochs = 3 if scale == "small" else 30
    return make(epochs=epochs, model_name=model, options={"samples": samples})

def plain():
    return make(epochs=5)
"""
)


def test_a_function_makes_a_task_with_the_options_that_it_takes(tmp_path: Path) -> None:
    path = written(tmp_path / "mytask.py", FUNCTIONS)
    sized = find_task(f"{path}:sized")
    assert sized.task().epochs == sized.task({"scale": "full"}).epochs == 30
    made = sized.task({"scale": "small", "samples": 8, "model": "wide", "data": None})
    assert (made.epochs, made.model_name, made.options["samples"]) == (3, "wide", 8)
    assert find_task(f"{path}:plain").task({"scale": "full", "model": None}).epochs == 5


@pytest.mark.parametrize(
    ("attribute", "options", "message"),
    [
        ("plain", {"scale": "small"}, "mytask.py:plain takes no scale: leave --scale out"),
        ("plain", {"samples": 9}, "mytask.py:plain takes no samples: leave --samples out"),
        ("sized", {"length": 9}, "mytask.py:sized takes no seq-length: leave --seq-length out"),
        ("sized", {"data": Path("x")}, "mytask.py:sized takes no data: leave --data out"),
        ("task", {"model": "wide"}, "mytask.py:task takes no model: leave --model out"),
    ],
)
def test_an_option_that_a_task_does_not_take_is_refused(
    tmp_path: Path, attribute: str, options: dict, message: str
) -> None:
    path = written(tmp_path / "mytask.py", FUNCTIONS)
    with pytest.raises(ValueError, match=message):
        find_task(f"{path}:{attribute}").task(options)


@pytest.mark.parametrize(
    ("text", "attribute", "message"),
    [
        (TASK, "tusk", "mytask.py has no task 'tusk': it has task$"),
        (TASK + "other = make()\n", "tusk", "has no task 'tusk': it has task, other$"),
        (TASK, "x", "has no task 'x': it has task$"),
        ("y = 1\n", "task", "has no task 'task': it has no Task$"),
        (TASK + "def none(): return 3\n", "none", "mytask.py:none must be a Task, got int"),
    ],
)
def test_what_is_no_task_is_refused(
    tmp_path: Path, text: str, attribute: str, message: str
) -> None:
    path = written(tmp_path / "mytask.py", text)
    with pytest.raises(TaskError, match=message):
        find_task(f"{path}:{attribute}").task()


def test_a_file_that_is_not_there_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TaskError, match=re.escape(f"{tmp_path}/mytask.py is no file")):
        find_task(f"{tmp_path}/mytask.py:task")
    monkeypatch.chdir(tmp_path)
    message = "nothing.here:task cannot be imported: ModuleNotFoundError: No module named 'nothing'"
    with pytest.raises(TaskError, match=message):
        find_task("nothing.here:task")


def test_two_files_of_one_name_are_not_mistaken(tmp_path: Path) -> None:
    first, second = (written(tmp_path / folder / "mytask.py") for folder in "ab")
    find_task(f"{first}:task")
    message = "a module called mytask is imported already: rename mytask.py"
    with pytest.raises(TaskError, match=message):
        find_task(f"{second}:task")
    written(tmp_path / "json.py")
    with pytest.raises(
        TaskError, match=r"a module called json is imported already: rename json\.py"
    ):
        find_task(f"{tmp_path}/json.py:task")


def test_a_file_that_fails_shows_its_own_lines_and_is_read_anew_when_it_is_mended(
    tmp_path: Path,
) -> None:
    path = written(tmp_path / "mytask.py", "import beside\n\n\ntask = beside.make(0)\n")
    beside = written(tmp_path / "beside.py", "def make(n):\n    return 1 / n\n")
    message = "^mytask.py:task cannot be imported: ZeroDivisionError: division by zero\n"
    with pytest.raises(TaskError, match=message) as caught:
        find_task(f"{path}:task")
    assert caught.value.__notes__ == [
        f"  {path}:4: task = beside.make(0)",
        f"  {beside}:2 in make: return 1 / n",
    ]
    path.write_text(TASK)
    assert find_task(f"{path}:task").task().name == "line"


def test_a_syntax_error_shows_the_line_that_cannot_be_read(tmp_path: Path) -> None:
    path = written(tmp_path / "mytask.py", "x = 1\ntask = = 3\n")
    with pytest.raises(TaskError, match=r"cannot be imported: SyntaxError: invalid") as caught:
        find_task(f"{path}:task")
    assert caught.value.__notes__ == [f"  {path}:2: task = = 3"]


def test_of_an_error_deep_in_a_library_the_users_lines_are_shown(tmp_path: Path) -> None:
    path = written(
        tmp_path / "mytask.py", TASK.replace("make()\n", "make(train=x.reshape(7, 3))\n")
    )
    with pytest.raises(TaskError, match="cannot be imported: RuntimeError: shape") as caught:
        find_task(f"{path}:task")
    (note,) = caught.value.__notes__
    assert note == f"  {path}:23: task = make(train=x.reshape(7, 3))"


def test_a_function_that_fails_shows_its_own_lines_and_those_of_a_recursion_once(
    tmp_path: Path,
) -> None:
    text = "def task(n=100):\n    if n == 0:\n        exit('no')\n    return task(n - 1)\n"
    path = written(tmp_path / "mytask.py", text)
    found = find_task(f"{path}:task")
    with pytest.raises(
        TaskError, match=r"^mytask\.py:task cannot be made: SystemExit: no\n"
    ) as caught:
        found.task()
    assert len(caught.value.__notes__) == 5
    assert caught.value.__notes__[-1] == f"  {path}:3 in task: exit('no')"


def test_a_tasks_own_refusal_says_what_is_wrong(tmp_path: Path) -> None:
    path = written(tmp_path / "mytask.py", TASK.replace("task = make()", "task = make(epochs=0)"))
    with pytest.raises(
        TaskError, match="cannot be imported: epochs=0 must be an integer"
    ) as caught:
        find_task(f"{path}:task")
    assert caught.value.__notes__[0] == f"  {path}:23: task = make(epochs=0)"


def test_the_hash_is_of_what_a_file_does_and_not_of_how_it_is_written(tmp_path: Path) -> None:
    path = written(tmp_path / "mytask.py")
    before = source_of(path)
    for same in (
        TASK.replace('"""A line."""', '"""Another\n\ntext."""'),
        TASK.replace('    """Make it."""\n', ""),
        TASK.replace("x = torch", "# A comment.\n\nx  =  torch"),
    ):
        assert source_of(path, same) == before
    others = [
        TASK.replace("2 * x", "3 * x"),
        TASK.replace("nn.Linear(1, 1)", "nn.Linear(1, 1, bias=False)"),
        TASK + "y = 1\n",
    ]
    assert len({before, *(source_of(path, text) for text in others)}) == 4
    assert source_of(path, TASK) == before


def test_the_hash_does_not_see_where_the_file_is(tmp_path: Path) -> None:
    first, second = (written(tmp_path / folder / "mytask.py") for folder in "ab")
    before = source_of(first)
    forget(tmp_path)
    assert source_of(second) == before


def test_the_hash_sees_what_is_imported_from_beside_it_however_indirectly(tmp_path: Path) -> None:
    path = written(tmp_path / "mytask.py", "import parts.models\nfrom helper_a import N\n" + TASK)
    files = {
        "helper_a.py": "from helper_b import M as N\n",
        "helper_b.py": "M = 1\n",
        "parts/__init__.py": "",
        "parts/models.py": "from . import layers\nfrom .losses import L\n",
        "parts/layers.py": "W = 1\n",
        "parts/losses.py": "L = 1\n",
    }
    for name, text in {**files, "unrelated.py": "U = 1\n"}.items():
        written(tmp_path / name, text)
    before = source_of(path)
    for name, text in files.items():
        written(tmp_path / name, text + "EDITED = 1\n")
        assert source_of(path) != before, name
        written(tmp_path / name, text)
        assert source_of(path) == before, name
    written(tmp_path / "unrelated.py", "U = 2\n")
    assert source_of(path) == before


def test_what_is_imported_inside_of_a_function_counts_too(tmp_path: Path) -> None:
    text = TASK + "def later():\n    import helper_c\n    return make()\n"
    path = written(tmp_path / "mytask.py", text)
    written(tmp_path / "helper_c.py", "C = 1\n")
    before = source_of(path)
    written(tmp_path / "helper_c.py", "C = 2\n")
    assert source_of(path) != before


def test_steppes_own_tasks_have_no_source() -> None:
    found = find_task("digits")
    assert (found.label, found.source, found.location) == ("digits", "", "")
    with pytest.raises(ValueError, match="did you mean digits"):
        find_task("digit")


def test_the_current_directory_is_left(tmp_path: Path) -> None:
    before = os.getcwd()  # noqa: PTH109
    find_task(f"{written(tmp_path / 'mytask.py')}:task").task()
    assert os.getcwd() == before  # noqa: PTH109


def test_a_file_that_is_edited_after_it_was_imported_is_refused(tmp_path: Path) -> None:
    """Its old code ran, and was filed as the new one's."""
    path = written(tmp_path / "edited_later.py")
    first = find_task(f"{path}:task").source
    assert find_task(f"{path}:task").source == first
    path.write_text(path.read_text() + "\nEDITED = True\n")
    with pytest.raises(TaskError, match=r"edited_later.* has changed since it was imported"):
        find_task(f"{path}:task")
    forget(tmp_path)
    assert find_task(f"{path}:task").source != first
