"""Import what a user names in a file or module of theirs: ``mytask.py:task``, ``package.module:x``.

Tasks and optimizers of users' own come through here. Importing runs their code.
"""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

# Files that are being imported at this moment.
_IMPORTING: list[Path] = []


def refuse_while_importing(called: str) -> None:
    """Refuse a call from a file that is being imported: each process that imports it would call.

    Raises
    ------
    RuntimeError
        The message names the file and the remedy.
    """
    if _IMPORTING:
        raise RuntimeError(
            f"{called} is called while {_IMPORTING[-1].name} is imported, and each worker imports "
            'it: put the call below if __name__ == "__main__":, or into another file'
        )


def import_named(name: str) -> ModuleType:
    """Import the module of ``file.py:attribute`` or ``package.module:attribute``.

    A file is imported under its own name, with its directory to import from, as a script has it;
    a module also from the current directory.

    Raises
    ------
    ValueError
        The file is not there, or another module has its name.
    Exception
        Whatever the code raises.
    """
    path = name.rpartition(":")[0]
    if path.endswith(".py"):
        return _from_file(Path(path))
    # A console script has its own directory on the path, and not the one it is called in.
    _look_in(Path.cwd())
    return importlib.import_module(path)


def _look_in(directory: Path) -> None:
    if str(directory) not in sys.path:
        sys.path.insert(0, str(directory))


def _from_file(path: Path) -> ModuleType:
    path = path.resolve()
    if not path.is_file():
        raise ValueError(f"{path} is no file")
    known = sys.modules.get(path.stem)
    if known is not None:
        if getattr(known, "__file__", None) == str(path):
            return known
        raise ValueError(f"a module called {path.stem} is imported already: rename {path.name}")
    _look_in(path.parent)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    _IMPORTING.append(path)
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[path.stem]
        if "attempted relative import" not in str(error):
            raise
        raise ImportError(
            f"{error}, as {path.name} is imported outside of its package: name it as a module, "
            f"such as {path.parent.name}.{path.stem}:…, from the directory that holds the package"
        ) from error
    finally:
        _IMPORTING.pop()
    return module
