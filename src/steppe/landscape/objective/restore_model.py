"""Restore a model after it has been measured: parameters, buffers, attributes and modes.

Used by every instrument through :meth:`Objective.evaluation_mode`.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from steppe._shared.identity import are_same

_PLAIN = (int, float, str, type(None), Tensor)
_CONTAINERS = (list, dict, set)
# What every module has: its hooks, parameters and parts.
_OF_MODULES = frozenset(vars(nn.Module()))


@contextmanager
def restore_on_exit(model: nn.Module, moved: Iterable[Tensor] = ()) -> Iterator[Callable[[], None]]:
    """Restore a model when the block ends, by an exception too.

    Buffers and the parameters in ``moved`` get their values back in the storage they had, every
    module gets its mode and its attributes back, and its lists, dictionaries and sets what was in
    them. Gradients are not saved: take derivatives with
    :func:`torch.autograd.grad`, which does not touch ``.grad``.

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
    buffers = [
        _Buffer(module, name, buffer, buffer.detach().clone(), _version(buffer))
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if not _is_expanded(buffer)
    ]
    attributes = [
        (vars(module), name, value)
        for module in model.modules()
        for name, value in vars(module).items()
        if name != "training" and isinstance(value, _PLAIN)
    ]

    containers = [
        (value, copy.copy(value))
        for module in model.modules()
        for name, value in vars(module).items()
        if name not in _OF_MODULES and isinstance(value, _CONTAINERS)
    ]

    def reset() -> None:
        for each in buffers:
            if not each.is_untouched:
                each.restore()
        for owner, name, value in attributes:
            if owner.get(name) is not value:
                owner[name] = value
        for container, content in containers:
            _refill(container, content)

    try:
        yield reset
    finally:
        with torch.no_grad():
            for parameter, value in parameters:
                # As with buffers: a graph may refer to it.
                if not torch.equal(parameter, value):
                    parameter.copy_(value)
        for each in buffers:
            # Also where the write was made by way of .data, which counts no version.
            each.restore()
        reset()
        for module, training in modes:
            module.training = training


class _Buffer(NamedTuple):
    """A buffer of a module, and a copy of its value."""

    module: nn.Module
    name: str
    tensor: Tensor
    value: Tensor
    version: int

    @property
    def is_untouched(self) -> bool:
        """Whether it is the module's still, and nothing was written to it since the copy."""
        is_own = self.module._buffers.get(self.name) is self.tensor
        return is_own and self.version == _version(self.tensor) >= 0

    @torch.no_grad()
    def restore(self) -> None:
        """Put the tensor back under its name, and its value into the tensor."""
        # A write raises the version that autograd checks: a graph which saved the buffer could no
        # longer be differentiated, even where the value stays the same.
        is_comparable = self.tensor.layout == torch.strided
        if not is_comparable or not torch.equal(self.tensor, self.value):
            self.tensor.copy_(self.value)
        # A forward pass may have assigned a new tensor to the buffer's name.
        self.module._buffers[self.name] = self.tensor


def _refill(container: Any, content: Any) -> None:
    """Put back what was in a list, dictionary or set, if something else is in it."""
    is_same = are_same([*container], [*content])
    if isinstance(container, dict):
        is_same = is_same and are_same([*container.values()], [*content.values()])
    if is_same:
        return
    container.clear()
    if isinstance(container, list):
        container.extend(content)
    else:
        container.update(content)


def _version(tensor: Tensor) -> int:
    # Tensors made in inference mode count no versions.
    return -1 if tensor.is_inference() else tensor._version


def _is_expanded(buffer: Tensor) -> bool:
    """Whether elements share memory, in which case torch refuses in-place writes."""
    is_strided = buffer.layout == torch.strided
    return is_strided and any(
        step == 0 and count > 1 for step, count in zip(buffer.stride(), buffer.shape, strict=True)
    )
