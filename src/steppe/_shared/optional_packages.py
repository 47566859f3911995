"""Packages that only some tasks and models need, imported when one of those is used."""

import importlib
from typing import Any

import torch

from steppe._shared.messages import first_line


def import_optional(module: str) -> Any:
    """Import a module of an optional package.

    Raises
    ------
    ModuleNotFoundError
        If the package is not installed.
    ImportError
        If it is installed, but was built for another torch.
    """
    try:
        return importlib.import_module(module)
    except RuntimeError as error:
        # A torchvision built for another torch fails where it registers its operators.
        raise ImportError(
            f"{module} does not fit torch {torch.__version__}: {first_line(error)}"
        ) from error
