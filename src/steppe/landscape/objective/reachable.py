"""What a model, a loss or data may use: all objects that can be reached from them.

Random generators and modules are looked for there, to be put back after a pass.
"""

import functools
import inspect
from collections import deque
from collections.abc import Iterator, Mapping
from itertools import islice
from types import FunctionType, MethodType, ModuleType
from weakref import ProxyTypes

import numpy as np
from torch import Tensor, nn
from torch.utils.data.dataloader import _BaseDataLoaderIter

# What holds nothing, or is not to be looked into.
_LEAVES = (Tensor, np.ndarray, str, bytes, int, float, type, ModuleType, _BaseDataLoaderIter)

#: Their functions and objects refer to nothing of the user's.
LIBRARIES = ("torch", "numpy", "transformers")

# Of large containers the first elements are looked at, and no more objects than this.
_ELEMENTS, _OBJECTS = 100, 10_000


def reachable(root: object) -> Iterator[object]:
    """Yield an object and those that it holds: attributes, elements, what functions close over.

    Tensors, arrays, numbers and texts are left out, and so is most of what is very large.

    Examples
    --------
    >>> inner = nn.Linear(1, 1)
    >>> any(each is inner for each in reachable(lambda x: inner(x)))
    True
    """
    waiting, seen = [root], set[int]()
    while waiting and len(seen) < _OBJECTS:
        value = waiting.pop()
        # Of a proxy everything is asked in its object, which may be gone.
        is_proxy = type(value) in ProxyTypes
        if id(value) not in seen and not is_proxy and not isinstance(value, _LEAVES):
            seen.add(id(value))
            yield value
            waiting += _parts(value)


def named_by(function: object) -> Iterator[object]:
    """Yield what a callable computes with by name: arguments that are bound, variables, itself.

    What these hold is left out, and so are types, modules of Python, and plain values.

    Examples
    --------
    >>> center = np.zeros(1)
    >>> any(each is center for each in named_by(lambda outputs: outputs - center))
    True
    """
    waiting, seen = [function], set[int]()
    while waiting and len(seen) < _OBJECTS:
        value = waiting.pop()
        if type(value) in ProxyTypes:
            continue
        is_number = isinstance(value, Tensor | np.ndarray)
        if id(value) in seen or (isinstance(value, _LEAVES) and not is_number):
            continue
        seen.add(id(value))
        yield value
        if isinstance(value, FunctionType | MethodType | functools.partial):
            waiting += _parts(value)


def _parts(value: object) -> list[object]:
    if isinstance(value, nn.Module):
        # Most of a module's own dictionaries, of hooks, are empty.
        held = vars(value).values()
        filled = (each for each in held if type(each) is not dict or each)
        return [*value.children(), *filled, *_code(value)]
    if isinstance(value, Mapping):
        return list(islice(value.values(), _ELEMENTS))
    if isinstance(value, tuple | list | set | frozenset | deque):
        return list(islice(value, _ELEMENTS))
    if isinstance(value, MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, FunctionType):
        return _variables(value)
    return [*attributes_of(value).values(), *_code(value)]


def attributes_of(value: object) -> dict[str, object]:
    """Return an object's attributes: none of one that has none, or cannot name them yet."""
    try:
        return vars(value)
    except Exception:
        return {}


def _code(value: object) -> list[object]:
    """Return what runs when an object is called: its class may refer to others by name."""
    return [getattr(type(value), name, None) for name in ("forward", "__call__")]


def _variables(function: FunctionType) -> list[object]:
    """Return what a function refers to: variables around it, global ones, defaults, attributes."""
    if (function.__module__ or "").partition(".")[0] in LIBRARIES:
        return []
    own = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    own += vars(function).values()
    try:
        known = inspect.getclosurevars(function)
    except ValueError:  # a variable that has no value yet
        return own
    return [*known.nonlocals.values(), *known.globals.values(), *own]
