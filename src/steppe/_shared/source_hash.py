"""Hashes of what source code does, so that results of different code never mix."""

import ast
import hashlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import steppe
from steppe._shared.content_hash import VERSIONED, content, file_of, is_in_packages

# What a run's numbers come from; the rest of the package plans, keeps and prints them.
_DECISIVE = (
    "rules.py",
    "_engines",
    "optim",
    "landscape",
    "_shared/hyperparameters.py",
    "_shared/muon.py",
    "_shared/optimizer_modes.py",
    "_shared/optimizer_presets.py",
    "_shared/optional_packages.py",
    "_shared/recipes.py",
    "compare/data",
    "compare/metrics",
    "compare/models",
    "compare/planning/controls.py",
    "compare/planning/search_spaces.py",
    "compare/records/measure_names.py",
    "compare/records/packed_numbers.py",
    "compare/records/of_mean.py",
    "compare/records/second_task.py",
    "compare/records/task_modifiers.py",
    "compare/tasks",
    "compare/training",
)

_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@cache
def steppe_source() -> str:
    """Hash what steppe computes with; once, as later edits are not in the running process."""
    return package_source(Path(steppe.__file__).parent)


def package_source(root: Path) -> str:
    """Hash the sources under steppe's directory ``root`` that a run's numbers depend on.

    Raises
    ------
    FileNotFoundError
        There are none, as in an archive: runs of different code would have one hash.
    """
    entries = [root / name for name in _DECISIVE]
    files = [file for entry in entries for file in (entry.rglob("*.py"), [entry])[entry.is_file()]]
    if not files:
        raise FileNotFoundError(
            f"{root} has no source files, by which studies of different code are told apart: "
            "install steppe as files, with pip"
        )
    return _hash((file.relative_to(root).as_posix(), file) for file in sorted(files))


def class_source(cls: type, module: str) -> str:
    """Hash the files of ``module`` and of every module that defines ``cls`` or a base of it.

    And what these import from beside them. Torch, steppe and Python itself are left out: their
    versions or sources stand in a run's settings already. "" if nothing else is left.
    """
    modules = {module, *(base.__module__ for base in cls.__mro__)}
    own = sorted(name for name in modules if name.partition(".")[0] not in VERSIONED)
    found: dict[str, Path] = {}
    for name in own:
        known = sys.modules.get(name)
        if known is None or not getattr(known, "__file__", None):
            continue
        file = Path(str(known.__file__))
        # Of an installed package the rest is large, and a version of it tells it.
        found |= {name: file} if is_in_packages(file) else _files_of(known)
    return _hash(sorted(found.items())) if found else ""


def module_source(module: ModuleType) -> str:
    """Hash a module's file, and those of what it imports from beside it, one after the other.

    Beside it is what lies below its directory, or that of its package; installed packages do not.
    "" of a module without a file.
    """
    if getattr(module, "__file__", None) is None:
        return ""
    return _hash(sorted(_files_of(module).items()))


# Modules with their hashes when they were first asked for, by name.
_LOADED: dict[str, tuple[ModuleType, str]] = {}


def loaded_source(module: ModuleType) -> str:
    """Return :func:`module_source` of a module that has been imported, which runs as it was then.

    Raises
    ------
    ValueError
        A file has changed since it was first asked for: what runs is the code from before.
    """
    found = module_source(module)
    known, first = _LOADED.setdefault(module.__name__, (module, found))
    if known is not module:
        _LOADED[module.__name__] = module, found
    elif first != found:
        raise ValueError(
            f"{module.__file__}, or a file that it imports from beside it, has changed since it "
            "was imported, and the code from before would run: start Python anew"
        )
    return found


def _files_of(module: ModuleType) -> dict[str, Path]:
    path = Path(str(module.__file__)).resolve()
    root = path.parents[module.__name__.count(".") + (path.name == "__init__.py")]
    found: dict[str, Path] = {}
    ahead = [module.__name__]
    while ahead:
        name = ahead.pop()
        if name in found or (here := path if name == module.__name__ else file_of(name)) is None:
            continue
        is_own = name.partition(".")[0] == module.__name__.partition(".")[0]
        if is_own or (here.is_relative_to(root) and not is_in_packages(here)):
            found[name] = here
            ahead += _imports(here, name)
    return found


def function_source(values: Iterable[Any]) -> str:
    """Hash what functions and other objects do, and all that they compute with.

    It is the code that this process runs, whatever its file says by now. Of torch's and of
    installed packages' it is the names.
    """
    digest = hashlib.sha256()
    for each in values:
        for part in content(each):
            digest.update(f"{part}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]


# Hashes of objects before they were used, by those that they have had afterwards.
_FIRST: dict[str, str] = {}


def first_source(values: Iterable[Any]) -> str:
    """Return what :func:`function_source` was before the objects were used by a study."""
    found = function_source(values)
    return _FIRST.get(found, found)


@contextmanager
def noting_changes(held: Mapping[str, Sequence[Any]]) -> Iterator[None]:
    """Note what becomes of objects by using them inside of the block.

    As of a data set that keeps what it has read, or a list that notes something: they are the same
    afterwards, for :func:`first_source`, by which they are named here.
    """
    try:
        yield
    finally:
        for first, each in held.items():
            if (now := function_source(each)) != first:
                _FIRST[now] = first


def _imports(path: Path, name: str) -> Iterator[str]:
    """Yield the names of modules that a file imports, or that are no modules but in one."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: 1 - node.level or None] if node.level else []
            base = ".".join([*parents, *filter(None, [node.module])])
            yield base
            yield from (f"{base}.{each.name}" for each in node.names)


def _hash(files: Iterable[tuple[str, Path]]) -> str:
    digest = hashlib.sha256()
    for name, path in files:
        content = _source_behaviour(path)
        digest.update(f"{name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


def _source_behaviour(path: Path) -> bytes:
    """Return a file's syntax tree without docstrings, comments and layout; of others the bytes.

    So prose can be mended without breaking the studies that are under way.
    """
    if path.suffix != ".py":
        return path.read_bytes()
    tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    return ast.dump(tree).encode()
