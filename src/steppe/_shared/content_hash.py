"""Write what Python objects compute with: studies of tasks made in a notebook differ by it.

:mod:`steppe._shared.source_hash` hashes it. It is the same in every process, for equal objects.
"""

import copyreg
import dis
import functools
import hashlib
import importlib.util
import os
import sys
import sysconfig
from collections import defaultdict, deque
from collections.abc import ItemsView, Iterator, KeysView, Mapping, ValuesView
from contextlib import suppress
from pathlib import Path
from random import Random
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType, NoneType
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Of what a version says enough, the name is written.
_PACKAGES = frozenset({"site-packages", "dist-packages"})
VERSIONED = frozenset({"torch", "steppe", *sys.stdlib_module_names})

# What Python itself adds to a class, and identities that libraries keep.
_ADDED = frozenset(
    {
        "__dict__", "__weakref__", "__doc__", "__module__", "__firstlineno__", "_abc_impl",
        "__annotations__", "__annotations_cache__", "__annotate_func__", "__static_attributes__",
        "__dataclass_fields__", "__dataclass_params__", "__match_args__", "__parameters__",
        "_stop_words_id",
    }
)  # fmt: skip

_LIBRARIES = (sysconfig.get_path("stdlib"), str(Path(__file__).parents[1]))

# Where torch wraps steps.
_HOOK_FILE = torch.optim.Optimizer.profile_hook_step.__code__.co_filename

_PLAIN = (str, int, float, complex, bytes, bool, NoneType)
_VIEWS = (KeysView, ValuesView, ItemsView)

# Their state changes when they are drawn from.
_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, Random)

# Of large containers of objects so many elements are written, evenly spaced, and of all no more
# objects. Of numbers and texts all are.
_ELEMENTS, _OBJECTS = 1000, 1_000_000


def content(value: Any) -> Iterator[str]:
    """Yield what a value is, and all that it holds: numbers, code, attributes, closures, globals.

    Of what is installed it is the names.

    Parameters
    ----------
    value : object
        Anything.

    Examples
    --------
    >>> square, cube, same = (functools.partial(pow, exp=each) for each in (2, 3, 2))
    >>> [*content(square)] == [*content(same)]
    True
    >>> [*content(square)] == [*content(cube)]
    False
    """
    # Kept, as an identity is another object's as soon as the first is gone.
    waiting, seen = deque([value]), dict[int, Any]()
    while waiting and len(seen) < _OBJECTS:
        each = waiting.popleft()
        if type(each) in _PLAIN:
            yield repr(each)
            continue
        if id(each) in seen:
            yield "again"
            continue
        seen[id(each)] = each
        name, held = _described(each)
        yield name
        waiting += held


def _is_elsewhere(module: Any) -> bool:
    """Whether a module is installed, or part of Python: its version tells what it does.

    Types that are compiled may have no name of a module.
    """
    if not isinstance(module, str):
        return True
    if module.partition(".")[0] in VERSIONED:
        return True
    file = getattr(sys.modules.get(module), "__file__", None)
    return file is not None and is_in_packages(Path(file))


def _described(value: Any) -> tuple[str, list[Any]]:
    """Return a value's name, and what it holds."""
    kind = type(value)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if isinstance(value, Tensor | np.ndarray):
        return _numbers(name, value)
    if isinstance(value, ModuleType):
        return f"module {value.__name__}", _of_module(value)
    if isinstance(value, FunctionType):
        inner = _unwrapped(value)
        if inner is not value:
            return _described(inner)
        return f"{value.__module__}.{value.__qualname__}", _of_function(value)
    if isinstance(value, BuiltinFunctionType):
        bound = getattr(value, "__self__", None)
        return f"{value.__module__}.{value.__qualname__}", [] if bound is None else [bound]
    if isinstance(value, MethodType):
        return name, [value.__func__, value.__self__]
    if isinstance(value, functools.partial):
        return name, [value.func, value.args, value.keywords]
    if isinstance(value, type):
        return f"class {value.__module__}.{value.__qualname__}", _of_class(value)
    if isinstance(value, (*_GENERATORS, type(os.environ))):
        return name, []
    if isinstance(value, (*_PLAIN, Mapping, set, frozenset, tuple, list, deque, *_VIEWS)):
        return _of_container(name, value)
    return name, [kind, *_state(value)]


def _of_container(name: str, value: Any) -> tuple[str, list[Any]]:
    """Describe a container, or a number or text of a class of its own, by its elements and class.

    Its class may compute with them, as a list of transforms that can be called does.
    """
    kind = type(value)
    is_builtin = kind.__module__ in ("builtins", "collections")
    more = [] if is_builtin else [kind, getattr(value, "__dict__", {})]
    more += [value.default_factory] if isinstance(value, defaultdict) else []
    if isinstance(value, _PLAIN):
        base: Any = next(each for each in _PLAIN if isinstance(value, each))
        return f"{name} {base.__repr__(value)}", more
    if isinstance(value, set | frozenset):
        try:
            return f"{name} {sorted(map(_digest, value))}", more
        except RecursionError:  # a tree whose nodes refer to each other
            return f"{name} {sorted(type(each).__qualname__ for each in value)}", more
    elements = list(value.items() if isinstance(value, Mapping) else value)
    if kind in (dict, list, tuple):
        with suppress(RecursionError):
            if _is_plain(value):
                return f"{name} {_hash(repr(value))}", more
    step = max(1, -(-len(elements) // _ELEMENTS))
    return f"{name} {len(elements)}", [*elements[::step], *elements[-1:], *more]


def _is_plain(value: Any) -> bool:
    """Whether a value is made of Python's own numbers, texts, lists, tuples and dictionaries."""
    kind = type(value)
    if kind in (list, tuple):
        return all(map(_is_plain, value))
    if kind is dict:
        return all(map(_is_plain, value)) and all(map(_is_plain, value.values()))
    return kind in _PLAIN


def _digest(value: Any) -> str:
    return _hash("\n".join(content(value)))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _numbers(name: str, value: Any) -> tuple[str, list[Any]]:
    """Describe a tensor or an array by its shape and a hash of its numbers."""
    if isinstance(value, Tensor):
        if value.is_meta:
            return f"{name} {tuple(value.shape)} {value.dtype}", []
        if value.layout != torch.strided or value.is_quantized or value.is_nested:
            made: Any = value.__reduce_ex__(4)  # type: ignore[no-untyped-call]
            return f"{name} {value.layout}", list(made[1])
        plain = value.detach().resolve_conj().resolve_neg().cpu().flatten()
        plain = plain.clone(memory_format=torch.contiguous_format)
        numbers = _hash_of(plain.view(torch.uint8).numpy())
        return f"{name} {tuple(value.shape)} {value.dtype} {numbers}", []
    # As the mask of a masked array.
    more = [] if type(value) is np.ndarray else [getattr(value, "__dict__", {})]
    if value.dtype.hasobject:
        return f"{name} {value.shape}", [value.ravel().tolist(), *more]
    return f"{name} {value.shape} {value.dtype} {_hash_of(value)}", more


def _hash_of(array: Any) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _state(value: Any) -> list[Any]:
    """Return what an object is made of: its attributes, or what it would be pickled as."""
    kind = type(value)
    is_torchs = str(kind.__module__).partition(".")[0] == "torch"
    if is_torchs or not _is_elsewhere(kind.__module__):
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
    made = [_without_added(each) for each in made]
    return made if wrapped is None else [*made, wrapped]


def _without_added(state: Any) -> Any:
    if type(state) is not dict:
        return state
    return {name: each for name, each in state.items() if name not in _ADDED}


def _slots(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    return tuple(name for name in names if name not in ("__dict__", "__weakref__"))


def _of_function(function: FunctionType) -> list[Any]:
    if _is_installed(function):
        # A library's wrapper around a function of the user's own names it.
        return [] if _is_elsewhere(function.__module__ or "") else [vars(function)]
    held: list[Any] = [function.__defaults__, function.__kwdefaults__, vars(function)]
    for cell in function.__closure__ or ():
        try:
            held.append(cell.cell_contents)
        except ValueError:  # a variable that has no value yet
            continue
    return [*_of_code(function.__code__, function.__globals__), *held]


def _of_module(module: ModuleType) -> list[Any]:
    """Return what a module of the user's own defines, where it is used as a whole."""
    if _is_elsewhere(module.__name__) or module.__name__ == "__main__":
        return []
    own = {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("__") and not isinstance(value, ModuleType)
    }
    return [own]


def _is_installed(function: FunctionType) -> bool:
    """Whether a function's code is installed, or part of Python.

    Its module may be another's name: functools.wraps copies it.
    """
    file = function.__code__.co_filename
    if file.startswith("<"):
        made = _is_elsewhere(function.__module__ or "") and not hasattr(function, "__wrapped__")
        return file.startswith("<frozen") or made
    return file.startswith(_LIBRARIES) or is_in_packages(Path(file))


def _of_code(code: CodeType, names: Mapping[str, Any]) -> list[Any]:
    """Return instructions, constants and the global values that code refers to; not its docstring.

    Of a module these are the attributes that are read, and of one that is imported inside its text.
    """
    count = code.co_argcount + code.co_kwonlyargcount
    lines = [str((code.co_flags, code.co_posonlyargcount, *code.co_varnames[:count]))]
    held, current = list[Any](), None
    for each in dis.get_instructions(code):
        before, current = current, None
        if isinstance(before, ModuleType) and each.opname not in ("LOAD_ATTR", "LOAD_METHOD"):
            held.append(before)  # used as a whole
            before = None
        if each.opcode in dis.hasconst:
            lines.append(each.opname)
            inner = isinstance(each.argval, CodeType)
            held += _of_code(each.argval, names) if inner else [each.argval]
            continue
        lines.append(f"{each.opname} {each.argval!r}")
        if each.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            current = names.get(each.argval)
        elif isinstance(before, ModuleType):
            current = vars(before).get(each.argval)
            if _is_elsewhere(before.__name__) and not isinstance(current, ModuleType):
                current = None  # its name says what it is
        elif each.opname == "IMPORT_NAME":
            held.append(_text_of(each.argval, str(names.get("__package__") or "")))
        if current is not None and not isinstance(current, ModuleType):
            held.append(current)
    return [" ".join(lines), *held]


def _text_of(name: str, package: str) -> str:
    """Return the text of a module of the user's own that is imported inside of a function."""
    for each in (name, f"{package}.{name}"):
        file = file_of(each)
        if file is not None and not _is_elsewhere(each) and not is_in_packages(file):
            return _hash(file.read_text())
    return ""


def file_of(name: str) -> Path | None:
    """Return the file of a module that can be imported; None of what has no source here."""
    with suppress(Exception):  # a package that fails when it is imported
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.has_location and str(spec.origin).endswith(".py"):
            return Path(str(spec.origin)).resolve()
    return None


def is_in_packages(file: Path) -> bool:
    """Whether a file is that of an installed package."""
    return bool(_PACKAGES & {*file.parts})


def _of_class(kind: type) -> list[Any]:
    if _is_elsewhere(kind.__module__):
        return []
    own = {
        name: _functions_of(value)
        for name, value in vars(kind).items()
        if name not in _ADDED
        and not name.startswith("__pydantic_")
        and not _is_inherited(kind, name, value)
    }
    return [own, *kind.__bases__, type(kind)]


def _is_inherited(kind: type, name: str, member: Any) -> bool:
    """Whether torch has put a wrapper around a step that the class inherits."""
    if not _is_hooked(member):
        return False
    inherited = (vars(base).get(name) for base in kind.__mro__[1:])
    return any(_unwrapped(each) is _unwrapped(member) for each in inherited)


def _is_hooked(value: Any) -> bool:
    # A step of one's own that wraps torch's has its attributes, but not its code.
    is_function = isinstance(value, FunctionType) and bool(vars(value).get("hooked"))
    return is_function and value.__code__.co_filename == _HOOK_FILE


def _unwrapped(value: Any) -> Any:
    """Return the function that torch has put a wrapper around: a step, or what it compiles."""
    if _is_hooked(value):
        # Put there once the optimizer's class has an instance.
        return vars(value)["__wrapped__"]
    return getattr(value, "__dict__", {}).get("_torchdynamo_orig_callable", value)


def _functions_of(member: Any) -> Any:
    """Return the functions of a static method, a class method or a property; all else as it is."""
    if isinstance(member, property):
        return [member.fget, member.fset, member.fdel]
    return getattr(member, "__func__", None) or member
