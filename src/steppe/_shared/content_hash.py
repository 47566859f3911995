"""Write what Python objects compute with: studies of tasks made in a notebook differ by it.

:mod:`steppe._shared.source_hash` hashes it. It is the same in every process, for equal objects.
"""

import functools
import hashlib
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType, NoneType
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Of what a version says enough, the name is written.
INSTALLED = frozenset({"site-packages", "dist-packages"})
VERSIONED = frozenset({"torch", "steppe", *sys.stdlib_module_names})

# Of a class's members, those that its objects compute with.
_MEMBERS = (FunctionType, staticmethod, classmethod, property, str, int, float, NoneType)

# Of large containers so many elements are written, and of all no more objects.
_ELEMENTS, _OBJECTS = 1000, 100_000


def content(value: Any, file_source: Callable[[ModuleType], str]) -> Iterator[str]:
    """Yield what a value is, and all that it holds: numbers, code, attributes, closures.

    Of what is installed it is the names.

    Parameters
    ----------
    value : object
        Anything.
    file_source : callable
        What stands for the code of functions and classes in a module that is a file.

    Examples
    --------
    >>> square, cube, same = (functools.partial(pow, exp=each) for each in (2, 3, 2))
    >>> [*content(square, str)] == [*content(same, str)]
    True
    >>> [*content(square, str)] == [*content(cube, str)]
    False
    """
    # Kept, as an identity is another object's as soon as the first is gone.
    waiting, seen = deque([value]), dict[int, Any]()
    while waiting and len(seen) < _OBJECTS:
        each = waiting.popleft()
        if isinstance(each, str | int | float | complex | bytes | None):
            yield repr(each)
            continue
        if id(each) in seen:
            yield "again"
            continue
        seen[id(each)] = each
        name, held = _described(each, file_source)
        yield name
        waiting += held


def _is_elsewhere(module: str) -> bool:
    """Whether a module is installed, or part of Python: its version tells what it does."""
    if module.partition(".")[0] in VERSIONED:
        return True
    file = getattr(sys.modules.get(module), "__file__", None)
    return file is not None and bool(INSTALLED & {*Path(file).parts})


def _described(value: Any, file_source: Callable[[ModuleType], str]) -> tuple[str, list[Any]]:
    """Return a value's name, and what it holds."""
    kind = type(value)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if isinstance(value, Tensor | np.ndarray):
        return f"{name} {_numbers(value)}", []
    if isinstance(value, ModuleType):
        return f"module {value.__name__}", []
    if isinstance(value, CodeType):
        return value.co_code.hex(), [value.co_names, value.co_varnames, *value.co_consts]
    if isinstance(value, FunctionType):
        return f"{value.__module__}.{value.__qualname__}", _of_function(value, file_source)
    if isinstance(value, MethodType):
        return name, [value.__func__, value.__self__]
    if isinstance(value, functools.partial):
        return name, [value.func, value.args, value.keywords]
    if isinstance(value, type):
        return f"class {value.__module__}.{value.__qualname__}", _of_class(value, file_source)
    if isinstance(value, Mapping):
        return f"{name} {len(value)}", [*list(value)[:_ELEMENTS], *list(value.values())[:_ELEMENTS]]
    if isinstance(value, set | frozenset):
        return f"{name} {sorted(map(repr, value))}", []
    if isinstance(value, tuple | list | deque):
        return f"{name} {len(value)}", list(value)[:_ELEMENTS]
    return name, [kind, getattr(value, "__dict__", {})]


def _numbers(value: Any) -> str:
    if isinstance(value, Tensor):
        if value.is_meta or value.layout != torch.strided:
            return f"{tuple(value.shape)} {value.dtype}"
        value = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return f"{value.shape} {hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()}"


def _in_file(module: str) -> ModuleType | None:
    found = sys.modules.get(module)
    return found if getattr(found, "__file__", None) is not None else None


def _of_function(function: FunctionType, file_source: Callable[[ModuleType], str]) -> list[Any]:
    module = function.__module__ or ""
    if _is_elsewhere(module):
        return []
    held: list[Any] = [function.__defaults__, function.__kwdefaults__]
    for cell in function.__closure__ or ():
        try:
            held.append(cell.cell_contents)
        except ValueError:  # a variable that has no value yet
            continue
    if (own := _in_file(module)) is not None:
        return [file_source(own), *held]
    named = [function.__globals__.get(name) for name in _names(function.__code__)]
    return [function.__code__, *held, *named]


def _names(code: CodeType) -> list[str]:
    """Return the names that code, and the functions within it, refer to."""
    inner = [each for each in code.co_consts if isinstance(each, CodeType)]
    return [*code.co_names, *(name for each in inner for name in _names(each))]


def _of_class(kind: type, file_source: Callable[[ModuleType], str]) -> list[Any]:
    if _is_elsewhere(kind.__module__):
        return []
    if (module := _in_file(kind.__module__)) is not None:
        return [file_source(module)]
    own = {name: value for name, value in vars(kind).items() if isinstance(value, _MEMBERS)}
    for name in ("__doc__", "__module__", "__firstlineno__"):
        own.pop(name, None)
    functions = [getattr(value, "__func__", None) or getattr(value, "fget", None) or value
                 for value in own.values()]  # fmt: skip
    return [*own, *functions, *kind.__bases__]
