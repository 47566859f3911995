"""What of a batch's inputs is corrupted: images or tokens, and never labels or masks."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from steppe.landscape.objective.batches import map_tensors, tensors_of, without_labels
from steppe.landscape.perturbations.corruptions import InputScale, input_scale

# As Hugging Face's batches call them.
_TOKENS, _MASK = "input_ids", "attention_mask"
_NO_INPUTS = ("mask", "position", "type_ids", "length", "label", "target")
# Tokens that replacements are drawn from: far more than any share of them needs.
_POOL = 1 << 16


class Reference(NamedTuple):
    """What corruptions are measured against, of a whole data set.

    Attributes
    ----------
    images : InputScale or None
        Of all images; None where there are none.
    tokens : Tensor or None
        (tokens,): the first 65 536 of them, without padding; None where there are none.
    """

    images: InputScale | None
    tokens: Tensor | None


def reference_of(batches_of_inputs: Iterable[Any]) -> Reference:
    """Return what corruptions of these inputs are measured against."""
    tokens: list[Tensor] = []

    def images() -> Iterator[Tensor]:
        left = _POOL
        for inputs in batches_of_inputs:
            mask = mask_in(inputs)
            for tensor in input_tensors(inputs):
                if is_images(tensor) and tensor.numel():
                    yield tensor
                elif is_tokens(tensor) and left:
                    own = real_tokens(tensor, mask)
                    tokens.append(tensor[own][:left].detach().cpu())
                    left -= len(tokens[-1])

    scale = input_scale(images())
    return Reference(
        None if math.isnan(scale.std) else scale, torch.cat(tokens) if tokens else None
    )


def is_images(tensor: Tensor) -> bool:
    """Whether a tensor holds images: (samples, channels, height, width) of floating point."""
    return tensor.is_floating_point() and tensor.ndim == 4 and min(tensor.shape[-2:]) > 1


def is_tokens(tensor: Tensor) -> bool:
    """Whether a tensor holds tokens: (samples, tokens) of whole numbers."""
    is_whole = not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)
    return is_whole and tensor.ndim == 2 and tensor.shape[1] > 1


def input_tensors(inputs: Any) -> Iterator[Tensor]:
    """Yield the tensors of a batch's inputs; labels and masks in a mapping are none."""
    mask = mask_in(inputs)
    own = _inputs_in(inputs) if isinstance(inputs, Mapping) else inputs
    yield from (tensor for tensor in tensors_of(own) if tensor is not mask)


def map_inputs(inputs: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a copy of a batch's inputs with changed tensors; labels and masks stay as they are."""
    mask = mask_in(inputs)

    def changed(tensor: Tensor) -> Tensor:
        return tensor if tensor is mask else change(tensor)

    if not isinstance(inputs, Mapping):
        return map_tensors(inputs, changed)
    copied = map_tensors(inputs, lambda tensor: tensor)
    for name, part in _inputs_in(inputs).items():
        copied[name] = map_tensors(part, changed)
    return copied


def mask_in(inputs: Any) -> Tensor | None:
    """Return the mask of padding: 1 where a token is real, 0 where it is padding.

    In a mapping it is ``attention_mask``; in a tuple, what has the shape of the tokens before it
    and holds no other numbers than 0 and 1.
    """
    if isinstance(inputs, Mapping):
        found = inputs.get(_MASK)
        return found if isinstance(found, Tensor) else None
    if type(inputs) not in (tuple, list):
        return None
    tokens = [each for each in inputs if isinstance(each, Tensor) and is_tokens(each)]
    masks = (each for each in tokens[1:] if each.shape == tokens[0].shape)
    return next((each for each in masks if bool(((each == 0) | (each == 1)).all())), None)


def real_tokens(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """Return where tokens are no padding, by a mask of their shape; without one all are real."""
    if mask is None or mask.shape != tokens.shape:
        return torch.ones_like(tokens, dtype=torch.bool)
    return mask.bool()


def _inputs_in(mapping: Mapping[str, Any]) -> dict[str, Any]:
    if _TOKENS in mapping:
        return {_TOKENS: mapping[_TOKENS]}
    return {
        name: part
        for name, part in without_labels(mapping).items()
        if not any(word in str(name) for word in _NO_INPUTS)
    }
