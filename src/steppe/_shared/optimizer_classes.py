"""Find optimizer classes by name or by import path.

Commands use :func:`steppe._shared.optimizer_presets.find_optimizer`, which adds presets.
"""

from typing import Any

import torch
from torch.optim import Optimizer

import steppe
from steppe._shared.messages import first_line
from steppe._shared.user_files import import_named


def available() -> dict[str, type[Optimizer]]:
    """Return the optimizers of torch and steppe by lower-case class name.

    Where both have a name, it means steppe's. Base classes and SAM, which needs another optimizer,
    are left out.
    """
    found = {}
    for module in (torch.optim, steppe):
        for name in dir(module):
            thing = getattr(module, name)
            if isinstance(thing, type) and issubclass(thing, Optimizer):
                found[name.lower()] = thing
    for wrapper in ("optimizer", "sam"):
        found.pop(wrapper, None)
    return found


def imported(path: str) -> type[Optimizer]:
    """Return the optimizer class at ``package.module:Class`` or ``file.py:Class``.

    Raises
    ------
    ValueError
        The class cannot be imported, or is no optimizer.
    """
    thing = imported_attribute(path)
    if not (isinstance(thing, type) and issubclass(thing, Optimizer)):
        raise ValueError(f"{path} is not a subclass of torch.optim.Optimizer")
    return thing


def imported_attribute(path: str) -> Any:
    """Return whatever is at ``package.module:attribute`` or ``file.py:attribute``.

    Raises
    ------
    ValueError
        It cannot be imported.
    """
    try:
        return getattr(import_named(path), path.rpartition(":")[2])
    except (Exception, SystemExit) as error:  # importing runs code, which may do anything
        raise ValueError(f"{path} cannot be imported: {first_line(error)}") from error
