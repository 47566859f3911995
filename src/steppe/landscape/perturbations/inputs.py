"""What of a batch's inputs is corrupted: images or tokens, and never labels or masks."""

from collections.abc import Mapping
from itertools import count
from typing import Any

import torch
from torch import Tensor

from steppe.landscape.objective.batches import map_tensors, tensors_of, without_labels

# As Hugging Face's batches call them.
_TOKENS = "input_ids"
#: The place of Hugging Face's mask of padding.
ATTENTION_MASK = "attention_mask/0"
_NO_INPUTS = ("mask", "position", "type_ids", "length", "label", "target")


def is_images(tensor: Tensor) -> bool:
    """Whether a tensor holds images: (samples, channels, height, width) of floating point."""
    return tensor.is_floating_point() and tensor.ndim == 4 and min(tensor.shape[-2:]) > 1


def is_tokens(tensor: Tensor) -> bool:
    """Whether a tensor holds tokens: (samples, tokens) of whole numbers."""
    return is_whole(tensor) and tensor.ndim == 2 and tensor.shape[1] > 1


def is_whole(tensor: Tensor) -> bool:
    """Whether a tensor holds whole numbers."""
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def input_tensors(inputs: Any) -> dict[str, Tensor]:
    """Return the tensors of a batch's inputs by their places, such as "input_ids/0" and "/1".

    A mapping's labels, positions and the like are none; its masks are in :func:`mask_tensors`.
    """
    return _placed(_inputs_in(inputs) if isinstance(inputs, Mapping) else {"": inputs})


def mask_tensors(inputs: Any) -> dict[str, Tensor]:
    """Return what a mapping calls masks, by their places."""
    if not isinstance(inputs, Mapping):
        return {}
    return _placed({name: part for name, part in inputs.items() if "mask" in str(name)})


def with_tensors(inputs: Any, changed: Mapping[str, Tensor]) -> Any:
    """Return a copy of a batch's inputs with other tensors at these places."""

    def replaced(name: object, part: Any) -> Any:
        number = count()
        return map_tensors(part, lambda tensor: changed.get(f"{name}/{next(number)}", tensor))

    if not isinstance(inputs, Mapping):
        return replaced("", inputs)
    copied = map_tensors(inputs, lambda tensor: tensor)
    for name, part in _inputs_in(inputs).items():
        copied[name] = replaced(name, part)
    return copied


def _placed(parts: Mapping[str, Any]) -> dict[str, Tensor]:
    return {
        f"{name}/{number}": tensor
        for name, part in parts.items()
        for number, tensor in enumerate(tensors_of(part))
    }


def _inputs_in(mapping: Mapping[str, Any]) -> dict[str, Any]:
    if _TOKENS in mapping:
        return {_TOKENS: mapping[_TOKENS]}
    return {
        name: part
        for name, part in without_labels(mapping).items()
        if not any(word in str(name) for word in _NO_INPUTS)
    }
