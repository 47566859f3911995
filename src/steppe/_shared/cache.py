"""Files that take long to make, kept in the user's cache directory: prepared data and models.

Kernels are kept by :mod:`steppe._engines.cpu.kernel_files`, which finds its directory without
platformdirs, as the core install has none. On Linux both are the same directory, and kernels are
not loaded from one that a group may write: it is made without that permission.
"""

import secrets
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from platformdirs import user_cache_path
from torch import Tensor

from steppe._shared.files import write_whole


def cache_directory() -> Path:
    """Return steppe's directory among the user's caches, where the system keeps them.

    On Linux that is ``$XDG_CACHE_HOME/steppe``, else ``~/.cache/steppe``. All in it can be made
    again: it may be deleted at any time.
    """
    return user_cache_path("steppe", appauthor=False)


def _make_cache_directory() -> None:
    cache_directory().mkdir(mode=0o755, parents=True, exist_ok=True)


def cached_tensors(name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return tensors from the cache, made and put there if they are not in it.

    Parameters
    ----------
    name : str
        Of the file. It must tell all that the tensors depend on, by a hash for instance.
    make : callable
        Makes them.
    """
    path = cache_directory() / f"{name}.pt"
    with suppress(Exception):  # what may be wrong with such a file has no class in common
        found: dict[str, Tensor] = torch.load(path, weights_only=True)
        return found
    made = make()
    with suppress(OSError):  # where nothing can be kept, it is made each time
        _make_cache_directory()
        write_whole(path, lambda file: torch.save(made, file))
    return made


def cached_directory(name: str, fill: Callable[[Path], None]) -> Path:
    """Return a directory of the cache, filled if it is not in it: whole or not at all.

    Parameters
    ----------
    name : str
        Of the directory. It must tell all that its files depend on.
    fill : callable
        Writes the files into the empty directory that it is given.
    """
    path = cache_directory() / name
    if path.is_dir():
        return path
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    _make_cache_directory()
    temporary.mkdir(parents=True)
    try:
        fill(temporary)
        try:
            temporary.rename(path)
        except OSError:
            # Another process was faster; what it has put there is the same.
            if not path.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return path
