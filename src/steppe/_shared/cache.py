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

    On Linux that is ``$XDG_CACHE_HOME/steppe``, else ``~/.cache/steppe``. steppe can
    make all of its files again: it may be deleted at any time.
    """
    return user_cache_path("steppe", appauthor=False)


def _make_cache_directory() -> None:
    cache_directory().mkdir(mode=0o755, parents=True, exist_ok=True)


def cached_tensors(name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return tensors from the cache; make and store them first if they are not in it.

    Parameters
    ----------
    name : str
        The file's name. It must contain all that the tensors depend on, as a hash for instance.
    make : callable
        Returns the tensors by name.

    Returns
    -------
    dict of str to Tensor
        The tensors by name, on the CPU.
    """
    path = cache_directory() / f"{name}.pt"
    with suppress(Exception):  # a damaged file may raise anything
        found: dict[str, Tensor] = torch.load(path, weights_only=True)
        return found
    made = make()
    with suppress(OSError):  # on a full or read-only disk the tensors are made each time
        _make_cache_directory()
        write_whole(path, lambda file: torch.save(made, file))
    return made


def cached_directory(name: str, fill: Callable[[Path], None]) -> Path:
    """Return a directory of the cache; fill it first if it is not there, whole or not at all.

    Parameters
    ----------
    name : str
        The directory's name. It must contain all that its files depend on.
    fill : callable
        Writes the files into the empty directory that it is given.

    Raises
    ------
    OSError
        The directory cannot be written.
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
            # Another process was faster; its files are the same.
            if not path.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return path
