"""Linear interpolation from one model to another, which barriers are measured along."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn


def interpolate_models(
    model_a: nn.Module, model_b: nn.Module
) -> tuple[nn.Module, Callable[[float], None]]:
    """Return a copy of a model, and a function that moves it along the line to another.

    Parameters
    ----------
    model_a, model_b : nn.Module
        Two models of one architecture. Neither is changed.

    Returns
    -------
    model : nn.Module
        The copy of ``model_a``; all its parameters require a gradient, frozen ones too.
    go_to : callable
        ``go_to(t)`` sets all its parameters and floating-point buffers to (1 − t)·a + t·b.

    Raises
    ------
    ValueError
        The models' parameters or buffers differ in name or shape.

    Examples
    --------
    >>> left, right = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.constant_(left.weight, -1.0), nn.init.constant_(right.weight, 1.0)
    >>> model, go_to = interpolate_models(left, right)
    >>> go_to(0.75)
    >>> model.weight.item(), left.weight.item()
    (0.5, -1.0)
    """
    start, end = _interpolated_tensors(model_a), _interpolated_tensors(model_b)
    _check_same_architecture(start, end)
    model = copy.deepcopy(model_a).requires_grad_(True)

    def go_to(t: float) -> None:
        with torch.no_grad():
            for name, tensor in _interpolated_tensors(model).items():
                tensor.copy_(torch.lerp(start[name], end[name].to(start[name]), t))

    return model, go_to


def _interpolated_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and floating-point buffers by name."""
    buffers = {name: b for name, b in model.named_buffers() if b.is_floating_point()}
    return dict(model.named_parameters()) | buffers


def _check_same_architecture(start: dict[str, Tensor], end: dict[str, Tensor]) -> None:
    for name in sorted(start.keys() ^ end.keys()):
        has, lacks = ("model_a", "model_b") if name in start else ("model_b", "model_a")
        raise ValueError(f"{has} has {name!r}, {lacks} has not: they must be of one architecture")
    for name, tensor in start.items():
        if tensor.shape != end[name].shape:
            raise ValueError(
                f"{name!r} has shape {tuple(tensor.shape)} in model_a, "
                f"{tuple(end[name].shape)} in model_b: they must be of one architecture"
            )
