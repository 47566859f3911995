"""The running statistics of normalisation layers, found from a model's parameters alone."""

import gc
import weakref
from collections.abc import Sequence

from torch import Tensor
from torch.nn import Module
from torch.nn.parameter import is_lazy

_NAMES = frozenset({"running_mean", "running_var", "num_batches_tracked"})


class RunningStatistics:
    """Finds the layers with running statistics in all modules that hold given parameters.

    The garbage collector is asked for the modules, once. An optimizer is given none, and hooks on
    all modules make compiled ones warn, recompile or not compile at all.
    """

    def __init__(self) -> None:
        self._layers: list[weakref.ref[Module]] = []
        self._searched: list[int] | None = None

    def in_training(self, params: Sequence[Tensor]) -> list[Tensor]:
        """Return the buffers that a forward pass would update now."""
        return [
            buffer
            for layer in self._find(params)
            if layer.training
            for buffer in _buffers(layer)
            if not is_lazy(buffer)
        ]

    def _find(self, params: Sequence[Tensor]) -> list[Module]:
        """Search once, and again when parameters were added or a layer is gone."""
        ids = [id(param) for param in params]
        layers = [layer for ref in self._layers if (layer := ref()) is not None]
        if ids != self._searched or len(layers) < len(self._layers):
            layers = _search(set(ids))
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
    return [part for part in parts.values() if _buffers(part)]


def _buffers(layer: Module) -> list[Tensor]:
    return [buffer for name, buffer in layer.named_buffers(recurse=False) if name in _NAMES]
