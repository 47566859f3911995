"""Restore a model after it has been measured: parameters, buffers, attributes and modes.

Used by every instrument through :meth:`Objective.evaluation_mode`.
"""

import functools
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from types import FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any
from weakref import ProxyTypes

import numpy as np
import torch
from torch import Tensor, nn

from steppe._shared.identity import are_same
from steppe.landscape.objective.reachable import LIBRARIES, attributes_of, named_by
from steppe.landscape.objective.saved_tensor import SavedTensor, can_be_saved

_PLAIN = int | float | str | None | nn.Parameter
_CONTAINERS = (list, dict, set, deque)
# Of a large container, as a vocabulary is, no more elements are looked into.
_ELEMENTS = 100
# Parameters of hidden modules, such as averaged weights, and arrays that a loss names are copied
# up to these sizes: what is larger hardly changes within a pass.
_COPIED_BYTES, _ARRAY_BYTES = 1 << 30, 1 << 26
# Of these the attributes are no state of a loss.
_OTHERS = (nn.Module, Tensor, np.ndarray, FunctionType, MethodType, functools.partial)
# What is looked into for objects with attributes, and how many of these.
_NO_OBJECTS = (*_OTHERS, type, ModuleType, str, bytes, int, float, complex, type(None))
_OBJECTS = 10_000
# What every module has: its hooks, parameters and parts.
_OF_MODULES = frozenset(vars(nn.Module()))


class LossState:
    """What a model and a loss may change beside the model's registered parts.

    Modules in lists, in objects and around functions, as teachers are kept from being trained; and
    the tensors and arrays that the loss names. What else a loss changes is its own affair: it may
    write records.

    Parameters
    ----------
    model : nn.Module
        The model.
    loss_fn : callable or None
        The loss.
    held : iterable
        All objects that these hold.
    """

    def __init__(self, model: nn.Module, loss_fn: object, held: Iterable[object]) -> None:
        registered = set(model.modules())
        found = (each for each in held if isinstance(each, nn.Module))
        self.modules = [each for each in dict.fromkeys(found) if each not in registered]
        named = list(named_by(loss_fn))
        self.arrays = [each for each in named if _is_small(each)]
        self.objects = [attributes_of(each) for each in named if not isinstance(each, _OTHERS)]

    @property
    def parameters(self) -> list[Tensor]:
        """Parameters of modules that may follow the model's, unless they are very large."""
        found: list[Tensor] = [param for module in self.modules for param in module.parameters()]
        return found if sum(param.nbytes for param in found) <= _COPIED_BYTES else []


def _is_small(value: object) -> bool:
    return isinstance(value, Tensor | np.ndarray) and value.nbytes <= _ARRAY_BYTES


class _Snapshot:
    """What modules hold, and what is in it.

    Parts, parameters and buffers by their names; attributes; objects with attributes that these
    hold; and the numbers in buffers, tensors, arrays and containers.
    """

    def __init__(self, model: nn.Module, state: LossState | None) -> None:
        modules = _modules(model, state)
        self._attributes = [
            (module, {n: v for n, v in vars(module).items() if n not in _OF_MODULES})
            for module in modules
        ]
        # TorchScript's are no dictionaries, and cannot be changed.
        self._registered: list[tuple[dict[str, Any], dict[str, Any]]] = [
            (names, dict(names))
            for module in modules
            for names in (module._buffers, module._parameters, module._modules)
            if isinstance(names, dict)
        ]
        held = _of_plain_objects(own for _, own in self._attributes)
        self._objects = [(own, dict(own)) for own in held]
        named = [] if state is None else state.arrays
        objects = [] if state is None else state.objects
        self._arrays = [(own, {n: v for n, v in own.items() if _is_small(v)}) for own in objects]
        saved = [own for _, own in (*self._attributes, *self._objects, *self._arrays)]
        parts = list(_changeable([*saved, *named], set()))
        self._contents = [(part, _content(part)) for part in parts if not isinstance(part, Tensor)]
        # What shares a parameter's memory is moved with it.
        of_parameters = {_storage(param) for module in modules for param in module.parameters()}
        tensors = [part for part in parts if isinstance(part, Tensor)]
        own_tensors = [part for part in tensors if _storage(part) not in of_parameters]
        buffers = [each for module in modules for each in module._buffers.values()]
        every = dict.fromkeys([*(each for each in buffers if each is not None), *own_tensors])
        self.tensors = [SavedTensor.of(each) for each in every if can_be_saved(each)]

    def put_back(self) -> None:
        """Put back buffers and attributes, where something has been done to them."""
        for each in self.tensors:
            if not each.is_untouched:
                each.restore()
        for names, own in self._registered:
            # A pass, or a change of mode, may have given a name something else, or added one.
            if [*names] != [*own] or not are_same([*names.values()], [*own.values()]):
                names.clear()
                names.update(own)
        for module, own in self._attributes:
            for name in vars(module).keys() - own.keys() - _OF_MODULES:
                del vars(module)[name]
            vars(module).update(own)
        for attributes, own in self._objects:
            for name in attributes.keys() - own.keys():
                del attributes[name]
            attributes.update(own)
        for attributes, arrays in self._arrays:
            attributes.update(arrays)
        for part, content in self._contents:
            _refill(part, content)


class Restorer:
    """Saves buffers, attributes and modes of modules, to put them back."""

    def __init__(
        self,
        model: nn.Module,
        moved: Iterable[Tensor],
        state: LossState | None,
        frozen: Iterable[Tensor] = (),
    ) -> None:
        self._model, self._state = model, state
        self._modes = [(module, module.training) for module in _modules(model, state)]
        self.parameters = [SavedTensor.of(param) for param in moved if can_be_saved(param)]
        kept = set(map(id, frozen))
        self._kept = [each for each in self.parameters if id(each.tensor) in kept]
        self._before = self._now = _Snapshot(model, state)
        #: Whether numbers that a graph may refer to have been put back at the end.
        self.has_written = False

    def settle(self, is_changed: bool = False) -> None:
        """Let :meth:`reset` put back what is there now: what the model's mode has made of it.

        Nothing is read where no mode makes anything, unless something ``is_changed`` otherwise.
        """
        if is_changed or any(changes_with_mode(module) for module, _ in self._modes):
            self._now = _Snapshot(self._model, self._state)
            self._kept = [SavedTensor.of(each.tensor) for each in self._kept]

    def reset(self) -> None:
        """Put back buffers and attributes, where something has been done to them."""
        for each in self._kept:
            if not each.is_untouched:
                each.restore()
        self._now.put_back()

    def restore(self) -> None:
        """Put everything back."""
        for module, training in self._modes:
            module.training = training
        for parameter in self.parameters:
            parameter.restore()
        for each in self._before.tensors:
            # Also where the write counts no version, as those by way of .data and BatchNorm's.
            self.has_written |= each.restore() and each.tensor.is_floating_point()
        self._before.put_back()


def _modules(model: nn.Module, state: LossState | None) -> list[nn.Module]:
    """Return all modules, each once: one inside of a hidden one may be found by both ways."""
    roots = (model, *([] if state is None else state.modules))
    return list(dict.fromkeys(each for root in roots for each in root.modules()))


def changes_with_mode(module: nn.Module) -> bool:
    """Whether a module's class does something of its own in ``train()`` or ``eval()``."""
    kind = type(module)
    return kind.train is not nn.Module.train or kind.eval is not nn.Module.eval


@contextmanager
def restore_on_exit(
    model: nn.Module,
    moved: Iterable[Tensor] = (),
    state: LossState | None = None,
    frozen: Iterable[Tensor] = (),
) -> Iterator[Restorer]:
    """Restore a model when the block ends, by an exception too.

    Buffers and the parameters in ``moved`` get their values back in the storage they had, every
    module gets its mode and its attributes back, and what these hold in tensors, arrays, lists,
    dictionaries, sets and deques is what was in them. Gradients are not saved: take derivatives
    with :func:`torch.autograd.grad`, which does not touch ``.grad``.

    Parameters
    ----------
    model : nn.Module
        The model to protect.
    moved : iterable of Tensor
        The parameters that the block changes; others are not copied.
    state : LossState, optional
        What else may be changed, as the loss's buffers.
    frozen : iterable of Tensor
        Those of ``moved`` that a forward pass alone may change, as a teacher's that follow the
        model's: ``reset`` puts them back too.

    Yields
    ------
    Restorer
        Its ``reset`` puts back buffers and attributes, before a pass that is to compute the same.

    Examples
    --------
    >>> model = nn.Linear(1, 1)
    >>> before = model.weight.item()
    >>> with restore_on_exit(model, model.parameters()), torch.no_grad():
    ...     _ = model.eval().weight.fill_(7.0)
    >>> model.training, model.weight.item() == before
    (True, True)
    """
    restorer = Restorer(model, moved, state, frozen)
    try:
        yield restorer
    finally:
        restorer.restore()


def _of_plain_objects(held: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the attributes of objects that modules hold, as the caches of weights that some keep.

    Also those that such objects hold; and of Python's own types only plain namespaces.
    """
    waiting = deque[Any](held)
    seen, found = set[int](), list[dict[str, Any]]()
    while waiting and len(seen) < _OBJECTS:
        value = waiting.popleft()
        # Of a proxy everything is asked in its object, which may be gone.
        if id(value) in seen or type(value) in ProxyTypes or isinstance(value, _NO_OBJECTS):
            continue
        seen.add(id(value))
        if isinstance(value, (tuple, *_CONTAINERS)):
            waiting += islice(value.values() if isinstance(value, dict) else value, _ELEMENTS)
        elif _has_attributes(value):
            own = attributes_of(value)
            found.append(own)
            waiting += own.values()
    return found


def _has_attributes(value: Any) -> bool:
    """Whether a user's object keeps its attributes in a dictionary of its own."""
    if isinstance(value, SimpleNamespace):
        return True
    library = (type(value).__module__ or "").partition(".")[0]
    if library in sys.stdlib_module_names or library in LIBRARIES:
        return False
    # Without asking the object, which may make attributes up.
    return any("__dict__" in vars(base) for base in type(value).__mro__[:-1])


def _changeable(value: Any, seen: set[int]) -> Iterator[Any]:
    """Yield what can be changed in place in nested containers, themselves included."""
    if type(value) in ProxyTypes or isinstance(value, _PLAIN) or id(value) in seen:
        return
    seen.add(id(value))
    is_constant = isinstance(value, Tensor) and not (value.requires_grad or value.is_meta)
    is_array = isinstance(value, np.ndarray) and value.flags.writeable
    if is_constant or is_array or isinstance(value, _CONTAINERS):
        yield value
    if isinstance(value, (tuple, *_CONTAINERS)):
        held = value.values() if isinstance(value, dict) else value
        for part in islice(held, _ELEMENTS):
            yield from _changeable(part, seen)


def _content(part: Any) -> Any:
    """Copy a container or an array, by its kind: a class of the user's own may refuse to."""
    if isinstance(part, np.ndarray):
        return part.copy()
    kind = next(kind for kind in _CONTAINERS if isinstance(part, kind))
    return deque(part) if kind is deque else kind.copy(part)


def _refill(container: Any, content: Any) -> None:
    """Put back what was in a container or an array, if something else is in it."""
    if isinstance(container, np.ndarray):
        if container.shape != content.shape:
            container.resize(content.shape, refcheck=False)
        np.copyto(container, content)
        return
    is_same = are_same([*container], [*content])
    if isinstance(container, dict):
        is_same = is_same and are_same([*container.values()], [*content.values()])
    if is_same:
        return
    kind: Any = next(kind for kind in _CONTAINERS if isinstance(container, kind))
    kind.clear(container)
    fill = kind.extend if kind in (list, deque) else kind.update
    fill(container, content)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else id(tensor)
