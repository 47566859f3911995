"""Linear interpolation from one model to another, which barriers are measured along."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from steppe._shared.interrupts import uninterrupted
from steppe.landscape.objective.parameters import check_module
from steppe.landscape.objective.saved_tensor import SavedTensor, can_be_saved


@contextmanager
def interpolation(model_a: nn.Module, model_b: nn.Module) -> Iterator[Callable[[float], None]]:
    """Yield a function that moves a model along the line to another.

    The model itself is moved, and put back when the block ends: a loss may read its parameters.
    Inside of the block all of them require a gradient, frozen ones too.

    Parameters
    ----------
    model_a, model_b : nn.Module
        Two models of one architecture. Only ``model_a`` is moved.

    Yields
    ------
    callable
        ``go_to(t)`` sets all parameters and floating-point buffers to (1 − t)·a + t·b.

    Raises
    ------
    TypeError
        One is no module.
    ValueError
        The models' parameters or buffers differ in name or shape, or in integers.

    Examples
    --------
    >>> left, right = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.constant_(left.weight, -1.0), nn.init.constant_(right.weight, 1.0)
    >>> with interpolation(left, right) as go_to:
    ...     go_to(0.75)
    ...     left.weight.item()
    0.5
    >>> left.weight.item()
    -1.0
    """
    for name, model in ("model_a", model_a), ("model_b", model_b):
        check_module(name, model)
        _check_finite(name, model)
    ours, theirs = _interpolated_tensors(model_a), _interpolated_tensors(model_b)
    _check_same_architecture(ours, theirs)
    _check_integers(ours, theirs)
    movable = {name: t for name, t in ours.items() if can_be_saved(t) and _is_continuous(t)}
    start = {name: SavedTensor.of(t) for name, t in movable.items()}
    # The models may share tensors, which move with model_a.
    moved = set(map(_storage, ours.values()))
    end = {
        name: t.detach().clone() if _storage(t) in moved else t.detach()
        for name, t in theirs.items()
    }
    buffers = [(module._buffers, dict(module._buffers)) for module in model_a.modules()]
    frozen = [
        p for p in model_a.parameters() if not (p.requires_grad or p.is_meta) and _is_continuous(p)
    ]

    def put_back() -> None:
        # A forward pass may have assigned other tensors to buffers, or resized them.
        for names, own in buffers:
            for name, buffer in own.items():
                names[name] = buffer
        for saved in start.values():
            saved.restore()

    def go_to(t: float) -> None:
        put_back()
        with torch.no_grad():
            for name, (tensor, _, value, _) in start.items():
                tensor.copy_(torch.lerp(value, end[name].to(value), t))

    with uninterrupted() as interruptible:
        try:
            for param in frozen:
                param.requires_grad_(True)
            with interruptible():
                yield go_to
        finally:
            for param in frozen:
                param.requires_grad_(False)
            put_back()


def _check_finite(name: str, model: nn.Module) -> None:
    for own, param in model.named_parameters():
        # As float8's, which torch cannot ask, and those that are on the meta device.
        if param.is_meta or param.dtype.itemsize < 2 or param.layout != torch.strided:
            continue
        if not param.isfinite().all():
            raise ValueError(f"parameter {own!r} of {name} has numbers that are not finite")


def _interpolated_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and floating-point buffers by name."""
    buffers = {name: b for name, b in model.named_buffers() if b.is_floating_point()}
    return dict(model.named_parameters()) | buffers


def _check_integers(start: dict[str, Tensor], end: dict[str, Tensor]) -> None:
    """Refuse parameters between which nothing lies, as frozen weights in int8."""
    for name, tensor in start.items():
        if _is_continuous(tensor) or tensor.is_meta:
            continue
        if tensor.dtype != end[name].dtype or not torch.equal(tensor, end[name].to(tensor.device)):
            raise ValueError(
                f"parameter {name!r} is {tensor.dtype}, and differs between the models: nothing "
                "lies between them; dequantise both"
            )


def _is_continuous(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _check_same_architecture(start: dict[str, Tensor], end: dict[str, Tensor]) -> None:
    for name in sorted(start.keys() ^ end.keys()):
        has, lacks = ("model_a", "model_b") if name in start else ("model_b", "model_a")
        raise ValueError(
            f"{has} has {name!r}, {lacks} has not: they must be of one architecture"
            f"{_way_out(start, end)}"
        )
    for name, tensor in start.items():
        if tensor.shape != end[name].shape:
            raise ValueError(
                f"{name!r} has shape {tuple(tensor.shape)} in model_a, "
                f"{tuple(end[name].shape)} in model_b: they must be of one architecture"
            )


def _way_out(start: Collection[str], end: Collection[str]) -> str:
    """Name the module inside of a wrapper: of averaged weights, of a compiled or parallel model."""
    for model, wrapped, plain in ("model_a", start, end), ("model_b", end, start):
        for inner in "module", "_orig_mod":
            if plain and set(wrapped) >= {f"{inner}.{name}" for name in plain}:
                return f"; pass {model}.{inner}"
    return ""
