"""Faces of packages whose modules are imported when one of their names is first used (PEP 562).

So ``import steppe`` and ``--help`` load neither torch nor what only some commands need.
"""

import ast
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any


def lazy_imports(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return ``__getattr__`` and ``__dir__`` for a package's ``__init__.py``.

    The names are those that the file imports under ``if TYPE_CHECKING:``, where type checkers and
    editors look for them too, so that they stand once. ``import steppe`` then loads no torch, which
    takes seconds that ``steppe --help`` does not need. What is imported from the package itself is
    a submodule.

    Parameters
    ----------
    package : str
        The package's ``__name__``.
    file : str
        Its ``__file__``.
    """
    sources = _imported_for_types(file)

    def get(name: str) -> Any:
        if name not in sources:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, original = sources[name]
        is_submodule = module == package
        value = (
            import_module(f"{package}.{original}")
            if is_submodule
            else getattr(import_module(module), original)
        )
        # The next use finds it without coming here.
        vars(import_module(package))[name] = value
        return value

    def names() -> list[str]:
        return sorted({*vars(import_module(package)), *sources})

    return get, names


def _imported_for_types(file: str) -> dict[str, tuple[str, str]]:
    """Return module and name there of each name that is imported under ``if TYPE_CHECKING:``."""
    tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    blocks = [
        node.body
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    return {
        alias.asname or alias.name: (node.module, alias.name)
        for block in blocks
        for node in block
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
