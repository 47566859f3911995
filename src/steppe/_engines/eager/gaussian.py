"""Normally distributed numbers that depend on a seed and on where an element stands, alone.

SAM at random draws its perturbation here: it is the same on every device, however a tensor is
sharded, and in a run that is resumed.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from steppe._engines.base import number_formats
from steppe._engines.base.bind import bind
from steppe._engines.base.sharding import LocalShard
from steppe._engines.eager import bit_ops
from steppe._engines.eager.codecs import from_memory_order

# A dozen words of 8 bytes an element stay in a core's cache: 19 ns an element, of 2¹⁷ elements 63
# (one core of an AMD EPYC, where torch.randn takes 6).
_PIECE = 1 << 15

_hash = bind(number_formats.hash_word, bit_ops)


def standard_normal(
    likes: Sequence[Tensor], shards: Sequence[LocalShard], seed: int, numbers: list[int], step: int
) -> Tensor:
    """Return independent draws of N(0, 1) in float32 (float64 for float64), one an element.

    Elements 2i and 2i + 1 of a whole tensor, in the order of its memory, are Box and Muller's two
    of the two words hash(key ^ hash(element)), where key = hash(hash(hash(seed) ^ number) ^ step)
    and hash is that of the rounding noise. What is drawn depends on nothing else.

    Parameters
    ----------
    likes
        This process's parts of tensors of one format, as real numbers.
    shards
        Which parts these are.
    seed, numbers, step
        Whole numbers, of which the last 32 bits count: one for each tensor between the others.

    Returns
    -------
    In one dimension the draws of all tensors, each in the order of its dimensions.
    """
    like, sizes = likes[0], [each.numel() for each in likes]
    key = _hash(torch.tensor(seed & 0xFFFFFFFF))
    key = _hash(key ^ (torch.tensor(numbers) & 0xFFFFFFFF))
    key = _hash(key ^ (step & 0xFFFFFFFF)).to(like.device)
    wide = torch.float64 if like.dtype == torch.float64 else torch.float32
    if len(likes) == 1:
        keys, places = key.expand(sizes[0]), _places(shards[0], like.device)
    else:
        keys = key.repeat_interleave(torch.tensor(sizes, device=like.device))
        found = [_places(shard, like.device)(0, n) for shard, n in zip(shards, sizes, strict=True)]
        places = _slices(torch.cat(found))
    drawn = torch.empty(sum(sizes), dtype=wide, device=like.device)
    length = _PIECE if like.device.type == "cpu" else max(len(drawn), 1)
    for begin in range(0, len(drawn), length):
        end = min(begin + length, len(drawn))
        drawn[begin:end] = _box_muller(keys[begin:end], places(begin, end), wide)
    if all(map(Tensor.is_contiguous, likes)):
        return drawn
    return torch.cat(
        [
            from_memory_order(piece, each).reshape(-1)
            for piece, each in zip(torch.split_with_sizes(drawn, sizes), likes, strict=True)
        ]
    )


def _box_muller(key: Tensor, places: Tensor, dtype: torch.dtype) -> Tensor:
    first, second = (_uniform(key, places & ~1 | odd, dtype) for odd in (0, 1))
    radius = (-2.0 * first.log()).sqrt()
    angle = 2.0 * math.pi * second
    drawn: Tensor = radius * torch.where(places & 1 == 0, angle.cos(), angle.sin())
    return drawn


def _uniform(key: Tensor, places: Tensor, dtype: torch.dtype) -> Tensor:
    """Return numbers in (0, 1), of 24 bits: none is 0, whose logarithm is infinite."""
    words = _hash(key ^ _hash(places & 0xFFFFFFFF)) >> 8
    uniform: Tensor = (words.to(dtype) + 0.5) * 2.0**-24
    return uniform


def _places(shard: LocalShard, device: torch.device) -> Callable[[int, int], Tensor]:
    """Return what says where elements from one to another stand in the whole tensor."""
    starts, size = shard.runs
    if len(starts) == 1:
        return lambda begin, end: torch.arange(begin, end, device=device) + int(starts[0])
    return _slices(torch.from_numpy((starts[:, None] + np.arange(size)).ravel()).to(device))


def _slices(every: Tensor) -> Callable[[int, int], Tensor]:
    return lambda begin, end: every[begin:end]
