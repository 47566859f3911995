"""Which layer a parameter is in, counted from the inputs, for layer-wise learning-rate decay."""

from collections.abc import Callable, Sequence
from typing import Any

from torch.nn import Module

from steppe._shared.messages import shortened
from steppe._shared.validation import check_integer
from steppe.optim.grouping.exempt import is_normalisation
from steppe.optim.grouping.named import NamedParam


def layers_of(params: Sequence[NamedParam], layers: Callable[[str], int] | None) -> list[int]:
    """Return the layer of each parameter, from 0.

    The names tell them, unless ``layers`` does: ``blocks.3.mlp.weight`` is in the layer
    ``blocks.3``, as the name goes to the first part that is a number. Layers follow each other as
    registered. Names without a number are in layer 0 before the first one that has a number, and
    in the layer before them elsewhere. But after the last one they are a layer more, the head, with
    the exception of normalisations, which belong to the last block, as in timm.

    Raises
    ------
    TypeError
        ``layers`` returns no integer.
    ValueError
        It returns a negative one, or all parameters are in one layer.
    """
    found = _by_names(params) if layers is None else [_told(layers, each.name) for each in params]
    if max(found) == min(found):
        reason = "no two names differ in their first number" if layers is None else "layers says so"
        raise ValueError(
            f"layer_decay would change nothing, as all parameters are in one layer: {reason}, from "
            f"{params[0].name} to {params[-1].name}; give layers=, a function that returns the "
            "layer of a name, from 0"
        )
    return found


def timm_layers(model: Module) -> Callable[[str], int] | None:
    """Return how timm tells a layer by its name; None for models that are not timm's."""
    # torch.compile's wrapper, which also stands before the names.
    found: Any = getattr(model, "_orig_mod", model)
    is_timms = any(cls.__module__.startswith("timm.") for cls in type(found).__mro__)
    if not is_timms or not hasattr(found, "group_matcher"):
        return None
    from timm.models import group_parameters

    layers = group_parameters(found, found.group_matcher(coarse=False), reverse=True)
    return lambda name: layers.get(name.removeprefix("_orig_mod."), max(layers.values()))


def _told(layers: Callable[[str], int], name: str) -> int:
    layer = layers(name)
    check_integer(0, **{f"layers({shortened(name)!r})": layer})
    return int(layer)


def _by_names(params: Sequence[NamedParam]) -> list[int]:
    blocks = [_block(each.name) for each in params]
    numbers: dict[str, int] = {}
    found, layer = [], 0
    # The first layer is that of the stem, if there is one.
    first = 1 if blocks[0] is None else 0
    for block in blocks:
        if block is not None:
            layer = numbers.setdefault(block, first + len(numbers))
        found.append(layer)
    if not numbers:
        return found
    last = max(place for place, block in enumerate(blocks) if block is not None)
    head = first + len(numbers)
    return [
        head if place > last and not is_normalisation(params[place]) else layer
        for place, layer in enumerate(found)
    ]


def _block(name: str) -> str | None:
    """Return a name up to its first part that is a number, or None."""
    parts = name.split(".")
    for place, part in enumerate(parts):
        if part.isdecimal():
            return ".".join(parts[: place + 1])
    return None
