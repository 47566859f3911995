"""What corruptions of a data set are measured against, and which of its inputs they leave alone.

A tuple of tensors does not say which of them is the mask of padding. It is decided once for all
data, by what lies where: padding is one token again and again.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from steppe.landscape.perturbations.corruptions import InputScale, RunningScale
from steppe.landscape.perturbations.inputs import (
    ATTENTION_MASK,
    input_tensors,
    is_images,
    is_tokens,
    is_whole,
    mask_tensors,
)

# Tokens that replacements are drawn from: far more than any share of them needs.
_POOL = 1 << 16
# A tensor of no more values is a mask, or a type of tokens, beside one of more.
_VALUES_OF_A_FLAG = 2


class Mark(NamedTuple):
    """Where padding is marked, and by which number."""

    place: str
    value: float


class Reference(NamedTuple):
    """What corruptions are measured against, of a whole data set, by the places of its inputs.

    Attributes
    ----------
    images : mapping
        The scale of the images at each place where there are some.
    tokens : mapping
        Of each place where there are tokens the first 65 536 of them, without padding.
    padding : mapping
        Of each of these places, what marks its padding.
    """

    images: Mapping[str, InputScale] = {}
    tokens: Mapping[str, Tensor] = {}
    padding: Mapping[str, tuple[Mark, ...]] = {}

    def real_tokens(self, place: str, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return where the tokens at a place are no padding, given the batch's tensors."""
        return _unmarked(tensors, place, self.padding.get(place, ()))


def reference_of(batches_of_inputs: Iterable[Any]) -> Reference:
    """Return what corruptions of these inputs are measured against.

    Images are what :func:`~steppe.landscape.is_images` says, tokens what
    :func:`~steppe.landscape.is_tokens` says. Tokens beside a tensor of the same shape are padded
    where it has the one of two values under which lies one and the same token; Hugging Face's
    ``attention_mask`` marks padding by 0. Not corrupted are tensors of two values beside one of
    more, such as masks and types, nor what is the same for each sample, such as positions.
    """
    scales: dict[str, RunningScale] = defaultdict(RunningScale)
    texts = _Texts()
    for inputs in batches_of_inputs:
        own = input_tensors(inputs)
        for place, tensor in own.items():
            if is_images(tensor):
                scales[place].add(tensor)
        texts.add(own, mask_tensors(inputs))
    return Reference({place: each.result() for place, each in scales.items()}, *texts.result())


class _Texts:
    """Tokens of all batches, and what lies beside them."""

    def __init__(self) -> None:
        self._are_tokens: dict[str, bool] = {}
        self._values: dict[str, set[float]] = defaultdict(set)
        # Of each pair of places, the tokens at the second under each value at the first.
        self._under: dict[tuple[str, str], dict[float, set[float]]] = defaultdict(dict)
        self._rows: dict[str, _Rows] = defaultdict(_Rows)
        self._held: list[dict[str, Tensor]] = []
        self._count: dict[str, int] = defaultdict(int)

    def add(self, inputs: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
        flat = {
            place: tensor.detach().cpu()
            for place, tensor in {**inputs, **masks}.items()
            if tensor.ndim == 2 and not tensor.is_complex()
        }
        texts = [place for place in inputs if place in flat and is_whole(flat[place])]
        if not texts:
            return
        for place in texts:
            known = self._are_tokens.get(place, False)
            self._are_tokens[place] = known or is_tokens(flat[place])
            self._rows[place].add(flat[place])
        for place, tensor in flat.items():
            _add_up_to(_VALUES_OF_A_FLAG + 1, self._values[place], tensor)
        for mark, text in product(flat, texts):
            if mark != text and flat[mark].shape == flat[text].shape and self._is_flag(mark):
                _note_under(self._under[mark, text], flat[mark], flat[text])
        self._hold(flat, texts)

    def _hold(self, flat: dict[str, Tensor], texts: list[str]) -> None:
        """Keep tensors until, whatever marks padding in the end, there are enough tokens."""
        if all(self._count[place] >= _POOL for place in texts):
            return
        self._held.append(flat)
        for place in texts:
            self._count[place] += int(_unmarked(flat, place, self._marks(place)).sum())

    def result(self) -> tuple[dict[str, Tensor], dict[str, tuple[Mark, ...]]]:
        """Return the tokens to draw from, and what marks padding, by place."""
        found = [place for place, are_tokens in self._are_tokens.items() if are_tokens]
        several = [place for place in found if not self._is_flag(place)]
        texts = [
            place
            for place in several or found[:1]
            if place == (several or found)[0] or not self._rows[place].are_alike
        ]
        padding = {place: tuple(self._marks(place, settled=True)) for place in texts}
        tokens = {}
        for place in texts:
            own = [
                each[place][_unmarked(each, place, padding[place])]
                for each in self._held
                if place in each
            ]
            tokens[place] = torch.cat(own)[:_POOL]
        return tokens, padding

    def _marks(self, text: str, settled: bool = False) -> Iterable[Mark]:
        """Yield what marks padding: of all data where it is ``settled``, else what may."""
        for mark in self._values:
            if mark == ATTENTION_MASK:
                yield Mark(mark, 0)
            elif self._is_flag(mark):
                under = self._under.get((mark, text), {})
                alone = sorted(value for value, tokens in under.items() if len(tokens) == 1)
                if settled:
                    alone = alone[:1] if len(under) > 1 else []
                yield from (Mark(mark, value) for value in alone)

    def _is_flag(self, place: str) -> bool:
        return len(self._values[place]) <= _VALUES_OF_A_FLAG


class _Rows:
    """Whether all rows are alike, as far as the shorter ones go."""

    def __init__(self) -> None:
        self._longest = torch.empty(0)
        self._count = 0
        self._differ = False

    def add(self, rows: Tensor) -> None:
        if len(rows) and rows.shape[1] > len(self._longest):
            known, self._longest = self._longest, rows[0]
            self._differ |= bool((known != rows[0, : len(known)]).any())
        self._differ |= bool((rows != self._longest[: rows.shape[1]]).any())
        self._count += len(rows)

    @property
    def are_alike(self) -> bool:
        """Of one row nobody knows."""
        return self._count > 1 and not self._differ


def _unmarked(tensors: Mapping[str, Tensor], place: str, marks: Iterable[Mark]) -> Tensor:
    tokens = tensors[place]
    real = torch.ones_like(tokens, dtype=torch.bool)
    for mark in marks:
        if mark.place in tensors and tensors[mark.place].shape == tokens.shape:
            real &= (tensors[mark.place] != mark.value).to(real.device)
    return real


def _add_up_to(most: int, found: set[float], tensor: Tensor) -> None:
    if len(found) < most:
        found.update(_distinct(tensor)[:most])


def _note_under(under: dict[float, set[float]], mark: Tensor, text: Tensor) -> None:
    """Note which tokens lie under each value: two are enough to know that they differ."""
    for value in _distinct(mark):
        _add_up_to(2, under.setdefault(value, set()), text[mark == value])


def _distinct(tensor: Tensor) -> list[float]:
    found: list[float] = tensor.unique().tolist()  # type: ignore[no-untyped-call]
    return found
