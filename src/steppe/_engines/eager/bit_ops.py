"""Bit operations of number formats in torch: 32-bit words in int64 tensors."""

from typing import Any

import torch
from torch import Tensor, bitwise_and, bitwise_or, bitwise_xor, where  # noqa: F401 - part of it

_WORD = 0xFFFFFFFF


def bits(x: Tensor) -> Tensor:
    """Return the words of float32 numbers."""
    return x.float().view(torch.int32).long() & _WORD


def number(word: Tensor) -> Tensor:
    """Return the float32 numbers of words."""
    return word.int().view(torch.float32)


def real(word: Tensor) -> Tensor:
    """Convert small words to float32."""
    return word.float()


def single(value: float) -> float:
    """Return a constant as it is: beside float32 tensors it is a float32."""
    return value


def add(a: Any, b: Any) -> Any:
    """Add words."""
    return (a + b) & _WORD


def subtract(a: Any, b: Any) -> Any:
    """Subtract words."""
    return (a - b) & _WORD


def multiply(a: Any, b: Any) -> Any:
    """Multiply words."""
    return (a * b) & _WORD


def left_shift(word: Any, count: int) -> Any:
    """Shift words left."""
    return (word << count) & _WORD


def right_shift(word: Any, count: int) -> Any:
    """Shift words right."""
    return word >> count


def maximum(a: Tensor, b: float) -> Tensor:
    """Return the larger of a tensor and a constant."""
    return a.clamp(min=b)


def larger(a: Tensor, b: int) -> Tensor:
    """Return the larger word."""
    return a.clamp(min=b)
