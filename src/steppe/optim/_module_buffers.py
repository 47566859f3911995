"""Save the module buffers that SAM's second pass may change, such as BatchNorm's statistics.

Where no module is named, modules are found from the optimizer's parameters alone. Momentum buffers
with slots are another thing: see :mod:`steppe.optim._buffer_optimizer`.
"""

import gc
import weakref
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.parameter import Parameter, is_lazy


class ModuleBuffers:
    """Find the layers with buffers in all modules that hold given parameters, and save those.

    All buffers are saved, whatever their names: besides running statistics, a forward pass may
    change the vectors of spectral norm's power iteration, or a codebook.

    A module that is given is searched, and nothing else. Without one, modules are searched once
    among all objects that the garbage collector knows. Global module hooks would find them too, but
    make compiled modules warn, recompile, or not compile at all.
    """

    def __init__(self, module: Module | None) -> None:
        self._module = module
        self._layers: list[weakref.ref[Module]] = []
        self._searched: list[int] | None = None

    def save(self, params: Sequence[Tensor]) -> list[Callable[[], None]]:
        """Copy the buffers of layers in training; return the functions that write them back."""
        found = [
            (layer, name, buffer)
            for layer in self._find(params)
            if layer.training
            for name, buffer in layer._buffers.items()
            if buffer is not None and _is_writable(buffer)
        ]
        # Layers may share a buffer, such as the one mask of all attention layers.
        distinct = {id(buffer): buffer for _, _, buffer in found}.values()
        return [
            *(partial(_register, layer, name, buffer) for layer, name, buffer in found),
            *(partial(_write, buffer, buffer.detach().clone()) for buffer in distinct),
        ]

    def _find(self, params: Sequence[Tensor]) -> list[Module]:
        """Search once, and again when parameters were added or a layer is gone."""
        if self._module is not None:
            return _with_buffers(self._module.modules())
        # Modules hold only Parameters, and the search is slow: skip it where there are none.
        ids = [id(param) for param in params if isinstance(param, Parameter)]
        layers = [layer for ref in self._layers if (layer := ref()) is not None]
        if ids != self._searched or len(layers) < len(self._layers):
            layers = _search(set(ids)) if ids else []
            self._layers = [weakref.ref(layer) for layer in layers]
            self._searched = ids
        return layers


def _search(params: set[int]) -> list[Module]:
    holders = _holders(params)
    held = {id(param) for holder in holders for param in Module.parameters(holder)}
    if params - held and gc.get_freeze_count():
        # After gc.freeze() the collector does not list what was there before.
        gc.unfreeze()
        holders = _holders(params)
        gc.freeze()
    parts = {id(part): part for holder in holders for part in holder.modules()}
    return _with_buffers(parts.values())


def _holders(params: set[int]) -> list[Module]:
    """Return all modules that hold one of the parameters."""
    modules = [
        candidate
        for candidate in gc.get_objects()
        if issubclass(type(candidate), Module) and "_modules" in vars(candidate)
    ]
    return [
        module
        for module in modules
        if any(id(param) in params for param in Module.parameters(module))
    ]


def _with_buffers(modules: Iterable[Module]) -> list[Module]:
    return [module for module in modules if len(module._buffers)]


def _is_writable(buffer: Tensor) -> bool:
    """Whether a forward pass could write to the buffer, and it can be written back."""
    if is_lazy(buffer) or buffer.layout != torch.strided or buffer.is_inference():
        return False
    # Elements of an expanded tensor share memory, and copy_ refuses to write to them.
    return all(
        stride or size < 2 for size, stride in zip(buffer.shape, buffer.stride(), strict=True)
    )


def _register(layer: Module, name: str, buffer: Tensor) -> None:
    """Give the layer its original buffer again, if the pass assigned a new one."""
    now = getattr(layer, name, None)
    # One of another shape is a cache that has grown, and its layer may rely on the new size.
    if now is not buffer and isinstance(now, Tensor) and _is_like(now, buffer):
        setattr(layer, name, buffer)


def _write(buffer: Tensor, original: Tensor) -> None:
    # Through .data, so without increasing the version count, as batch_norm itself writes: autograd
    # graphs that saved the buffer would otherwise refuse to run backward.
    if _is_like(buffer, original):
        buffer.data.copy_(original)


def _is_like(left: Tensor, right: Tensor) -> bool:
    return (left.shape, left.dtype, left.device) == (right.shape, right.dtype, right.device)
