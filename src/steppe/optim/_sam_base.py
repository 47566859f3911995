"""Make the base optimizer that SAM is around, where it is given as a class and options."""

import importlib
import inspect
import reprlib
from collections.abc import Callable, Iterable
from typing import Any

from torch.nn import Module


def make_base(params: Any, base: Any, options: dict[str, Any], total_steps: int | None) -> Any:
    """Return the base optimizer of these parameters.

    Parameters
    ----------
    params
        Parameters, or groups of them.
    base
        A class, another callable, or the path of one, such as ``"torch.optim.SGD"``.
    options
        Of the base.
    total_steps
        SAM's; the base is given it, too, if it has an argument of this name.

    Raises
    ------
    TypeError
        ``params`` is neither an optimizer nor parameters, or ``base`` nothing to call.
    ValueError
        The path names nothing.
    """
    if isinstance(params, Module) or not isinstance(params, Iterable):
        raise TypeError(
            f"params_or_optimizer={reprlib.repr(params)} is not an optimizer, nor parameters: "
            "expected an instance, e.g. SAM(torch.optim.AdamW(model.parameters())), or parameters, "
            "e.g. SAM(model.parameters(), torch.optim.AdamW)"
        )
    make = _imported(base) if isinstance(base, str) else base
    if not callable(make):
        raise TypeError(
            f"base={reprlib.repr(base)} is not valid: expected the class of an optimizer; rho and "
            "the other options are given by name"
        )
    if total_steps is not None and _takes(make, "total_steps"):
        options = {"total_steps": total_steps, **options}
    return make(params, **options)


def _takes(make: Callable[..., Any], name: str) -> bool:
    try:
        return name in inspect.signature(make).parameters
    except ValueError:  # compiled code may have no signature
        return False


def _imported(path: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"base={path!r} is not valid: expected a class, or its path, e.g. 'torch.optim.SGD' "
            f"({error})"
        ) from None
