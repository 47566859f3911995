"""Generated kernels in real files, so that Numba can cache what it compiles of them on disk."""

import hashlib
import importlib.util
import os
import sys
import tempfile
from functools import cache
from pathlib import Path
from types import ModuleType

import numba

from steppe import rules
from steppe.engines import cpu_words, native, storage
from steppe.engines.codegen import Formats, norm_source, slot_sums_source, update_source
from steppe.engines.kernel import Kernel


@cache
def update_kernels(kernel: Kernel, formats: Formats) -> ModuleType:
    """Return the module with a method's ``update`` and, for rules that ask for it, ``squares``."""
    name = "_".join([kernel.rule.__name__, formats.param, *dict.fromkeys(formats.state)])
    return _module(name, update_source(kernel, formats))


@cache
def norm_kernels(format: str) -> ModuleType:
    """Return the module with ``square_sums``, of gradients in a number format."""
    return _module(f"norm_{format}", norm_source(format))


@cache
def slot_kernels(format: str) -> ModuleType:
    """Return the module with ``sum_slots``, of slots in full precision."""
    return _module(f"slots_{format}", slot_sums_source(format))


def _module(name: str, text: str) -> ModuleType:
    path = _directory() / f"steppe_{name}_{_digest(text)}.py"
    if not path.exists():
        _write(path, text)
    return _load(path)


def _digest(text: str) -> str:
    """Hash what a kernel is made of; Numba does not see that something inlined has changed."""
    return hashlib.sha256(f"{text}{numba.__version__}{_inlined()}".encode()).hexdigest()[:16]


@cache
def _inlined() -> str:
    modules = (rules, storage, native, cpu_words)
    return "".join(Path(str(module.__file__)).read_text() for module in modules)


@cache
def _directory() -> Path:
    """Return the user's cache, or a directory for this process where that cannot be written."""
    place = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "steppe"
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return Path(tempfile.mkdtemp(prefix="steppe-"))
    # Not a name in a shared directory: somebody else could have put code there.
    return place if os.access(place, os.W_OK) else Path(tempfile.mkdtemp(prefix="steppe-"))


def _write(path: Path, text: str) -> None:
    """Put the whole file in place at once: other processes may be doing the same."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        file.write(text)
    Path(file.name).replace(path)


@cache
def _load(path: Path) -> ModuleType:
    """Load a file once: methods that differ in their scalars alone share a rule's kernels."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module
