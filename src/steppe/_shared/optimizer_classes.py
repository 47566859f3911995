"""Find optimizer classes by name or by import path.

Commands use :func:`steppe._shared.optimizer_presets.find_optimizer`, which adds presets.
"""

import importlib
import os
import sys

import torch
from torch.optim import Optimizer

import steppe
from steppe._shared.messages import first_line


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
    """Return the optimizer class at ``package.module:Class``, also from the current directory.

    Raises
    ------
    ValueError
        The class cannot be imported, or is no optimizer.
    """
    module, _, attribute = path.partition(":")
    # A console script has its own directory on the path, and not the one it is called in.
    if os.getcwd() not in sys.path:  # noqa: PTH109
        sys.path.insert(0, os.getcwd())  # noqa: PTH109
    try:
        thing = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # importing runs code, which may do anything
        raise ValueError(f"{path} cannot be imported: {first_line(error)}") from error
    if not (isinstance(thing, type) and issubclass(thing, Optimizer)):
        raise ValueError(f"{path} is not a subclass of torch.optim.Optimizer")
    return thing
