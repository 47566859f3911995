"""A test set with corrupted inputs: a model is tuned on clean data, and meets other data later."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from steppe.compare.data.datasets import Data, Stream, TensorSamples, parts_of, size_of
from steppe.landscape import (
    IMAGE_CORRUPTIONS,
    TOKEN_CORRUPTIONS,
    Corruption,
    Reference,
    generator_of,
    is_images,
    is_tokens,
    reference_of,
)

# Training samples that the scale of images, and tokens to draw from, are taken from.
_REFERRED_TO = 256


class CorruptedInputs(Dataset[Any]):
    """Samples, pairs of inputs and a target, with corrupted inputs.

    Each sample gets one of the kinds of corruption, and its noise, by its position alone. Samples
    in memory are corrupted at once, with other draws.

    Parameters
    ----------
    samples : Dataset
        The pairs; inputs are one image or one row of tokens.
    severity : int
        1 to 5.
    reference : Reference
        Of the clean inputs.
    where : str
        What the draws depend on besides.
    """

    def __init__(
        self, samples: Dataset[Any], severity: int, reference: Reference, where: str
    ) -> None:
        self._samples, self._severity, self._reference = samples, severity, reference
        self._where = where

    def __len__(self) -> int:
        return size_of(self._samples)

    def __getitem__(self, row: int) -> Any:
        sample = self._samples[row]
        inputs = _inputs(sample)[None]
        kinds = _kinds(inputs)
        generator = generator_of(0, self._where, row)
        kind = kinds[int(torch.randint(len(kinds), (), generator=generator))]
        corruption = Corruption(kind, self._severity)
        changed = corruption.corrupted(inputs, self._reference, generator)[0]
        return type(sample)((changed, sample[1]))


def with_corrupted_test(data: Data, severity: int, unchanged: Data | None = None) -> Data:
    """Corrupt the inputs of the test samples; those to train and to validate on stay.

    Parameters
    ----------
    data : Data
        Its samples are pairs; inputs are images or tokens, in tensors.
    severity : int
        1 to 5, as of :class:`~steppe.landscape.Corruption`.
    unchanged : Data, optional
        Its training samples say what spread and range inputs have, and which tokens replace others.
        Default: those of ``data``.

    Raises
    ------
    ValueError
        The inputs are neither.

    Examples
    --------
    >>> from steppe.compare.data.datasets import digits
    >>> clean = digits()
    >>> shifted = with_corrupted_test(clean, 3)
    >>> torch.equal(shifted.test[0][0], clean.test[0][0]), shifted.train is clean.train
    (False, True)
    """
    referred_to = data if unchanged is None else unchanged
    tests = [
        _corrupted(part, severity, _reference(plain), f"shift{severity}/{task}")
        for task, (part, plain) in enumerate(
            zip(parts_of(data.test), parts_of(referred_to.unaugmented), strict=True)
        )
    ]
    return replace(data, test=Stream(tests) if isinstance(data.test, Stream) else tests[0])


def _corrupted(
    samples: Dataset[Any], severity: int, reference: Reference, where: str
) -> Dataset[Any]:
    if isinstance(samples, TensorSamples):
        return replace(samples, inputs=_all_corrupted(samples.inputs, severity, reference, where))
    made = CorruptedInputs(samples, severity, reference, where)
    # What is wrong with inputs is seen before training.
    made[0]
    return made


def _all_corrupted(inputs: Tensor, severity: int, reference: Reference, where: str) -> Tensor:
    """Corrupt samples in memory, those of one kind together: it takes a hundredth of the time."""
    kinds = _kinds(inputs)
    drawn = torch.randint(len(kinds), (len(inputs),), generator=generator_of(0, where))
    changed = inputs.clone()
    for place, kind in enumerate(kinds):
        rows = drawn == place
        if rows.any():
            generator = generator_of(0, where, kind)
            changed[rows] = Corruption(kind, severity).corrupted(inputs[rows], reference, generator)
    return changed


def _reference(samples: Dataset[Any]) -> Reference:
    rows = range(min(_REFERRED_TO, size_of(samples)))
    return reference_of(_inputs(samples[row])[None] for row in rows)


def _inputs(sample: Any) -> Tensor:
    is_pair = type(sample) in (tuple, list) and len(sample) == 2
    if not is_pair or not isinstance(sample[0], Tensor):
        raise ValueError(
            "a corrupted test set needs samples that are pairs (inputs, target) with inputs in a "
            f"tensor, got a {type(sample).__name__}"
        )
    inputs: Tensor = sample[0]
    return inputs


def _kinds(inputs: Tensor) -> Sequence[str]:
    if is_images(inputs):
        return [*IMAGE_CORRUPTIONS]
    if is_tokens(inputs):
        return [*TOKEN_CORRUPTIONS]
    raise ValueError(
        "a corrupted test set needs images (channels, height, width) of floating point, or tokens "
        f"(length,) of whole numbers, got a sample of shape {tuple(inputs.shape[1:])} in "
        f"{inputs.dtype}"
    )
