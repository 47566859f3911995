"""Faces of packages whose modules are imported when one of their names is first used (PEP 562).

So ``import steppe`` and ``--help`` load neither torch nor what only some commands need.
"""

import dis
import sys
from collections.abc import Callable
from importlib import import_module
from types import CodeType
from typing import Any


def lazy_imports(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return ``__getattr__`` and ``__dir__`` for a package's ``__init__.py``, which calls it.

    The names are those that the file imports under ``if TYPE_CHECKING:``, where type checkers and
    editors look for them too, so that they stand once. ``import steppe`` then loads no torch, which
    takes seconds that ``steppe --help`` does not need. What is imported from the package itself is
    a submodule.

    Parameters
    ----------
    package : str
        The package's ``__name__``.
    """
    # The caller's code, as an archive or an application may have no source file.
    sources = _imported_in(sys._getframe(1).f_code)

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


def _imported_in(code: CodeType) -> dict[str, tuple[str, str]]:
    """Return module and name there of each name that code imports, whether or not it is run.

    Names that were imported when the code ran are the module's already.
    """
    found = {}
    module = original = ""
    for step in dis.get_instructions(code):
        if step.opname == "IMPORT_NAME":
            module = step.argval
        elif step.opname == "IMPORT_FROM":
            original = step.argval
        elif step.opname.startswith("STORE_") and original:
            found[step.argval] = (module, original)
            original = ""
    return found
