"""Run what changes parameters without gradients, and leave grad mode as it was whatever happens."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

_P = ParamSpec("_P")
_R = TypeVar("_R")


def without_gradients(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Switch gradients off while a function runs.

    One call into C switches them on again, where Ctrl-C may leave torch's context managers with
    gradients off for the rest of the process.
    """

    @wraps(function)
    def wrapped(*arguments: _P.args, **keywords: _P.kwargs) -> _R:
        with_gradients = torch.is_grad_enabled()
        try:
            torch._C._set_grad_enabled(False)
            return function(*arguments, **keywords)
        finally:
            torch._C._set_grad_enabled(with_gradients)

    return wrapped
