"""Write what Python objects compute with: studies of tasks made in a notebook differ by it.

:mod:`steppe._shared.source_hash` hashes it. It is the same in every process, for equal objects.
"""

import copyreg
import functools
import hashlib
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from random import Random
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Of what a version says enough, the name is written.
INSTALLED = frozenset({"site-packages", "dist-packages"})
VERSIONED = frozenset({"torch", "steppe", *sys.stdlib_module_names})

# What Python itself adds to a class.
_ADDED = frozenset(
    {
        "__dict__", "__weakref__", "__doc__", "__module__", "__firstlineno__", "_abc_impl",
        "__annotations__", "__annotations_cache__", "__annotate_func__", "__static_attributes__",
        "__dataclass_fields__", "__dataclass_params__", "__match_args__", "__parameters__",
    }
)  # fmt: skip

# Their state changes when they are drawn from.
_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, Random)

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
        return f"module {value.__name__}", _of_module(value, file_source)
    if isinstance(value, CodeType):
        return value.co_code.hex(), [value.co_names, value.co_varnames, *value.co_consts]
    if isinstance(value, FunctionType):
        return f"{value.__module__}.{value.__qualname__}", _of_function(value, file_source)
    if isinstance(value, BuiltinFunctionType):
        return f"{value.__module__}.{value.__qualname__}", []
    if isinstance(value, MethodType):
        return name, [value.__func__, value.__self__]
    if isinstance(value, functools.partial):
        return name, [value.func, value.args, value.keywords]
    if isinstance(value, type):
        return f"class {value.__module__}.{value.__qualname__}", _of_class(value, file_source)
    if isinstance(value, Mapping):
        return f"{name} {len(value)}", [*list(value)[:_ELEMENTS], *list(value.values())[:_ELEMENTS]]
    if isinstance(value, set | frozenset):
        return f"{name} {sorted(_digest(each, file_source) for each in value)}", []
    if isinstance(value, tuple | list | deque):
        return f"{name} {len(value)}", list(value)[:_ELEMENTS]
    if isinstance(value, _GENERATORS):
        return name, []
    return name, [kind, *_state(value)]


def _digest(value: Any, file_source: Callable[[ModuleType], str]) -> str:
    return hashlib.sha256("\n".join(content(value, file_source)).encode()).hexdigest()


def _state(value: Any) -> list[Any]:
    """Return what an object is made of: its attributes, or what it would be pickled as."""
    kind = type(value)
    if kind.__module__.partition(".")[0] == "torch" or not _is_elsewhere(kind.__module__):
        names = [name for base in kind.__mro__ for name in _slots(base)]
        own = {name: getattr(value, name) for name in names if hasattr(value, name)}
        own |= getattr(value, "__dict__", {})
        if own:
            return [own]
    # What installed classes keep beside, as the caches of a table, is not pickled.
    try:
        reduce = copyreg.dispatch_table.get(kind)
        found = value.__reduce_ex__(4) if reduce is None else reduce(value)
    except Exception:  # a lock, a file, a handle: it computes nothing by itself
        return []
    wrapped = getattr(value, "__wrapped__", None)
    made = list(found[:3]) if isinstance(found, tuple) else [found]
    return made if wrapped is None else [*made, wrapped]


def _slots(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    return tuple(name for name in names if name not in ("__dict__", "__weakref__"))


def _numbers(value: Any) -> str:
    if isinstance(value, Tensor):
        if value.is_meta or value.layout != torch.strided:
            return f"{tuple(value.shape)} {value.dtype}"
        value = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return f"{value.shape} {hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()}"


def _in_file(module: str) -> ModuleType | None:
    found = sys.modules.get(module)
    return found if getattr(found, "__file__", None) is not None else None


def _of_module(module: ModuleType, file_source: Callable[[ModuleType], str]) -> list[Any]:
    if _is_elsewhere(module.__name__) or _in_file(module.__name__) is None:
        return []
    return [file_source(module)]


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
    own = _in_file(module)
    code = function.__code__ if own is None else file_source(own)
    return [code, *held, *_named(function)]


def _named(function: FunctionType) -> list[Any]:
    """Return the global values that a function refers to, and those that it reads of modules."""
    names = sorted({*_names(function.__code__)})
    found = [(name, function.__globals__[name]) for name in names if name in function.__globals__]
    modules = [value for _, value in found if isinstance(value, ModuleType)]
    of_modules = [
        (f"{module.__name__}.{name}", vars(module)[name])
        for module in modules
        if not _is_elsewhere(module.__name__)
        for name in names
        if name in vars(module)
    ]
    return [*found, *of_modules]


def _names(code: CodeType) -> list[str]:
    """Return the names that code, and the functions within it, refer to."""
    inner = [each for each in code.co_consts if isinstance(each, CodeType)]
    return [*code.co_names, *(name for each in inner for name in _names(each))]


def _of_class(kind: type, file_source: Callable[[ModuleType], str]) -> list[Any]:
    if _is_elsewhere(kind.__module__):
        return []
    module = _in_file(kind.__module__)
    own = {name: _function_of(value) for name, value in vars(kind).items() if name not in _ADDED}
    code = [] if module is None else [file_source(module)]
    return [*code, own, *kind.__bases__]


def _function_of(member: Any) -> Any:
    """Return the function of a static method, a class method or a property; all else as it is."""
    return getattr(member, "__func__", None) or getattr(member, "fget", None) or member
