"""The weights of a model that are rounded or get noise, each of them once."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from steppe.landscape.objective.saved_tensor import is_expanded


def weights_of(model: nn.Module) -> Iterator[tuple[nn.Module, Tensor]]:
    """Yield each weight of floating point with two or more dimensions, and its module, once.

    Of weights that share their memory, however they are tied, the first stands for all.
    """
    known: set[object] = set()
    for module in model.modules():
        for param in module._parameters.values():
            if param is None or param.ndim < 2 or (place := memory_of(param)) in known:
                continue
            known.add(place)
            if param.is_floating_point() and param.numel():
                yield module, param


def memory_of(weight: Tensor) -> object:
    """Return what is equal of two tensors that begin at the same place in memory."""
    if weight.layout != torch.strided or not weight.numel() or weight.is_meta:
        return id(weight)
    return weight.device, weight.data_ptr()


def check_writable(model: nn.Module) -> None:
    """Refuse a model with weights that cannot be changed and put back.

    Raises
    ------
    ValueError
        With the name of the weight, and what to do.
    """
    for name, param in model.named_parameters():
        said = f"model's parameter {name} "
        if nn.parameter.is_lazy(param):
            raise ValueError(f"{said}has no shape yet: run the model on a batch first")
        if param.is_inference():
            raise ValueError(
                f"{said}was made in torch.inference_mode(), and cannot be changed: make or load "
                "the model outside of it"
            )
        if is_expanded(param):
            raise ValueError(
                f"{said}of shape {tuple(param.shape)} is expanded, several of its weights share "
                "memory: give it memory of its own with .clone()"
            )
