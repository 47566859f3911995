"""Restore a model after it has been measured: parameters, buffers, attributes and modes.

Used by every instrument through :meth:`Objective.evaluation_mode`.
"""

import copy
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from steppe._shared.identity import are_same

_PLAIN = int | float | str | None | nn.Parameter
_CONTAINERS = (list, dict, set, deque)
# Of a large container, as a vocabulary is, no more elements are looked into.
_ELEMENTS = 100
# What every module has: its hooks, parameters and parts.
_OF_MODULES = frozenset(vars(nn.Module()))


@contextmanager
def restore_on_exit(model: nn.Module, moved: Iterable[Tensor] = ()) -> Iterator[Callable[[], None]]:
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

    Yields
    ------
    callable
        Puts back buffers and attributes, as before a forward pass that is to compute the same.

    Examples
    --------
    >>> model = nn.Linear(1, 1)
    >>> before = model.weight.item()
    >>> with restore_on_exit(model, model.parameters()), torch.no_grad():
    ...     _ = model.eval().weight.fill_(7.0)
    >>> model.training, model.weight.item() == before
    (True, True)
    """
    modes = [(module, module.training) for module in model.modules()]
    parameters = [(p, p.detach().clone()) for p in moved]
    attributes = [
        (module, {n: v for n, v in vars(module).items() if n not in _OF_MODULES})
        for module in model.modules()
    ]
    registered = [(module._buffers, dict(module._buffers)) for module in model.modules()]
    parts = list(_changeable([own for _, own in attributes], set()))
    contents = [(part, copy.copy(part)) for part in parts if not isinstance(part, Tensor)]
    # What shares a parameter's memory is moved with it.
    of_parameters = {_storage(param) for param in model.parameters()}
    own_tensors = [
        part for part in parts if isinstance(part, Tensor) and _storage(part) not in of_parameters
    ]
    tensors = [
        _Saved(tensor, tensor.detach().clone(), _version(tensor))
        for tensor in (*model.buffers(), *own_tensors)
        if not _is_expanded(tensor)
    ]

    def reset() -> None:
        for each in tensors:
            if not each.is_untouched:
                each.restore()
        for names, buffers in registered:
            # A forward pass may have assigned a new tensor to a buffer's name.
            for name, buffer in buffers.items():
                names[name] = buffer
        for module, own in attributes:
            for name in vars(module).keys() - own.keys() - _OF_MODULES:
                del vars(module)[name]
            vars(module).update(own)
        for part, content in contents:
            _refill(part, content)

    try:
        yield reset
    finally:
        with torch.no_grad():
            for parameter, value in parameters:
                # As with buffers: a graph may refer to it.
                if not torch.equal(parameter, value):
                    parameter.copy_(value)
        for each in tensors:
            # Also where the write was made by way of .data, which counts no version.
            each.restore()
        reset()
        for module, training in modes:
            module.training = training


class _Saved(NamedTuple):
    """A tensor, and a copy of its value."""

    tensor: Tensor
    value: Tensor
    version: int

    @property
    def is_untouched(self) -> bool:
        """Whether nothing was written to it since the copy."""
        return self.version == _version(self.tensor) >= 0

    @torch.no_grad()
    def restore(self) -> None:
        """Put the value back into the tensor."""
        # A write raises the version that autograd checks: a graph which saved the tensor could no
        # longer be differentiated, even where the value stays the same.
        is_comparable = self.tensor.layout == torch.strided
        if not is_comparable or not torch.equal(self.tensor, self.value):
            self.tensor.copy_(self.value)


def _changeable(value: Any, seen: set[int]) -> Iterator[Any]:
    """Yield what can be changed in place in nested containers, themselves included."""
    if isinstance(value, _PLAIN) or id(value) in seen:
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


def _refill(container: Any, content: Any) -> None:
    """Put back what was in a container or an array, if something else is in it."""
    if isinstance(container, np.ndarray):
        np.copyto(container, content)
        return
    is_same = are_same([*container], [*content])
    if isinstance(container, dict):
        is_same = is_same and are_same([*container.values()], [*content.values()])
    if is_same:
        return
    container.clear()
    if isinstance(container, list | deque):
        container.extend(content)
    else:
        container.update(content)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else id(tensor)


def _version(tensor: Tensor) -> int:
    # Tensors made in inference mode count no versions.
    return -1 if tensor.is_inference() else tensor._version


def _is_expanded(buffer: Tensor) -> bool:
    """Whether elements share memory, in which case torch refuses in-place writes."""
    is_strided = buffer.layout == torch.strided
    return is_strided and any(
        step == 0 and count > 1 for step, count in zip(buffer.stride(), buffer.shape, strict=True)
    )
