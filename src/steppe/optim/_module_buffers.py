"""The buffers that a training model's forward pass may change, found from its parameters alone."""

import gc
import weakref
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.parameter import Parameter, is_lazy


class ModuleBuffers:
    """Finds the layers with buffers in all modules that hold given parameters, and saves them.

    All buffers are saved, not those of known names: what a pass changes in training is running
    statistics here, and the vectors of a power iteration or a codebook there.

    The garbage collector is asked for the modules, once. An optimizer is given none, and hooks on
    all modules make compiled ones warn, recompile or not compile at all.
    """

    def __init__(self) -> None:
        self._layers: list[weakref.ref[Module]] = []
        self._searched: list[int] | None = None

    def save(self, params: Sequence[Tensor]) -> list[Callable[[], None]]:
        """Copy the buffers of layers in training; return what puts each back."""
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
        # Modules hold no other tensors as parameters, and the search takes its time.
        ids = [id(param) for param in params if isinstance(param, Parameter)]
        layers = [layer for ref in self._layers if (layer := ref()) is not None]
        if ids != self._searched or len(layers) < len(self._layers):
            layers = _search(set(ids)) if ids else []
            self._layers = [weakref.ref(layer) for layer in layers]
            self._searched = ids
        return layers


def _search(params: set[int]) -> list[Module]:
    modules = [
        candidate
        for candidate in gc.get_objects()
        if issubclass(type(candidate), Module) and "_modules" in vars(candidate)
    ]
    holders = [
        module
        for module in modules
        if any(id(param) in params for param in Module.parameters(module))
    ]
    parts = {id(part): part for holder in holders for part in holder.modules()}
    return [part for part in parts.values() if len(part._buffers)]


def _is_writable(buffer: Tensor) -> bool:
    """Whether a forward pass could write to the buffer, and we could after it."""
    if is_lazy(buffer) or buffer.layout != torch.strided or buffer.is_inference():
        return False
    # An expanded tensor has many elements in one place.
    return all(
        stride or size < 2 for size, stride in zip(buffer.shape, buffer.stride(), strict=True)
    )


def _register(layer: Module, name: str, buffer: Tensor) -> None:
    """Give the layer its own buffer again, if a pass assigned a new one."""
    now = getattr(layer, name, None)
    # One of another shape is a cache that has grown, and its layer may count on its size.
    if now is not buffer and isinstance(now, Tensor) and _is_like(now, buffer):
        setattr(layer, name, buffer)


def _write(buffer: Tensor, original: Tensor) -> None:
    # Past the version count, as batch_norm itself writes: other graphs that have saved a buffer
    # which the second pass has not changed are as good as before.
    if _is_like(buffer, original):
        buffer.data.copy_(original)


def _is_like(left: Tensor, right: Tensor) -> bool:
    return (left.shape, left.dtype, left.device) == (right.shape, right.dtype, right.device)
