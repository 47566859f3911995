"""Normally distributed numbers that depend on a seed and on where an element stands, alone.

SAM at random draws its perturbation here: it is the same on every device, however a tensor is
sharded, and in a run that is resumed.
"""

import math
from collections.abc import Callable

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


def standard_normal(like: Tensor, shard: LocalShard, seed: int, *keys: int) -> Tensor:
    """Return independent draws of N(0, 1) in float32 (float64 for float64), one an element.

    Elements 2i and 2i + 1 of the whole tensor, in the order of its memory, are Box and Muller's two
    of the two words hash(key ^ hash(element)), where key = hash(… hash(hash(seed) ^ keys[0]) ^ …)
    and hash is that of the rounding noise. What is drawn depends on nothing else.

    Parameters
    ----------
    like
        This process's part of a tensor, as real numbers.
    shard
        Which part that is.
    seed, keys
        Whole numbers, of which the last 32 bits count: those of a parameter and of a step.
    """
    key = torch.tensor(seed & 0xFFFFFFFF)
    for each in keys:
        key = _hash(key) ^ (each & 0xFFFFFFFF)
    key = _hash(key).to(like.device)
    wide = torch.float64 if like.dtype == torch.float64 else torch.float32
    places = _places(shard, like.device)
    drawn = torch.empty(like.numel(), dtype=wide, device=like.device)
    length = _PIECE if like.device.type == "cpu" else max(like.numel(), 1)
    for begin in range(0, like.numel(), length):
        piece = slice(begin, begin + length)
        drawn[piece] = _box_muller(key, places(begin, min(begin + length, like.numel())), wide)
    return from_memory_order(drawn, like)


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
    every = torch.from_numpy((starts[:, None] + np.arange(size)).ravel()).to(device)
    return lambda begin, end: every[begin:end]
