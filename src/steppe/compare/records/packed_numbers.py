"""Results sample by sample, packed as text: a bit for right or wrong, two bytes for most losses.

A study keeps them of every run, as it needs them for the share of an interval that comes of the
samples: of a hundred thousand runs of ten thousand samples nothing larger could be kept.
"""

import base64
import binascii
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: Losses of more samples are kept as means over so many equal stretches of samples.
MOST_LOSSES = 500

_BITS = "bits"
_FLOATS = {"halves": "<f2", "singles": "<f4"}


def pack(values: Sequence[float]) -> str:
    """Pack the numbers of all samples: as bits, where each is 0 or 1.

    Examples
    --------
    >>> pack([1.0, 0.0, 1.0]), pack([0.5, 1.25])[:8]
    ('bits:3:oA==', 'halves:2')
    """
    return pack_bits(values) if {*values} <= {0.0, 1.0} else pack_floats(values)


def pack_bits(values: ArrayLike) -> str:
    """Pack yes or no for each sample.

    Examples
    --------
    >>> pack_bits([True, False, True])
    'bits:3:oA=='
    """
    bits = np.asarray(values, dtype=bool)
    return _packed(_BITS, len(bits), np.packbits(bits).tobytes())


def pack_floats(values: ArrayLike) -> str:
    """Pack numbers, means over up to 500 equal stretches of samples if there are more.

    They become float16, or float32 where that would round by more than a thousandth of the largest
    or make one infinite, which would leave the study without an interval.

    Examples
    --------
    >>> unpack(pack_floats([0.5, 1.25])).tolist()
    [0.5, 1.25]
    >>> pack_floats([1e5])[:9], unpack(pack_floats([1e5])).tolist()
    ('singles:1', [100000.0])
    """
    numbers = np.asarray(values, dtype=np.float64)
    if len(numbers) > MOST_LOSSES:
        numbers = means_of_stretches(numbers, stretches(len(numbers)))
    with np.errstate(over="ignore"):
        finite = np.isfinite(numbers)
        rounded = numbers[finite].astype("<f2").astype(np.float64)
        most = 1e-3 * np.abs(numbers[finite]).max(initial=0.0)
        fits = bool((np.abs(rounded - numbers[finite]) <= most).all())
        kind = "halves" if fits else "singles"
        floats = numbers.astype(_FLOATS[kind])
    return _packed(kind, len(floats), floats.tobytes())


def stretches(samples: int) -> int:
    """Return how many stretches samples are kept in, so that these are as equal as can be.

    Of 540 samples 500 stretches would be of one sample or of two, and a mean over them is none over
    the samples; 270 are all of two.

    Examples
    --------
    >>> stretches(400), stretches(540), stretches(10_000)
    (400, 270, 500)
    """
    return math.ceil(samples / math.ceil(samples / MOST_LOSSES))


def means_of_stretches(samples: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Return means over so many nearly equal stretches of samples, which are the last dimension.

    Examples
    --------
    >>> means_of_stretches(np.array([[1.0, 3.0, 4.0], [0.0, 2.0, 8.0]]), 2).tolist()
    [[2.0, 4.0], [1.0, 8.0]]
    """
    parts = np.array_split(samples, count, axis=-1)
    return np.stack([each.mean(axis=-1) for each in parts], axis=-1)


def unpack(text: str) -> NDArray[np.float64]:
    """Return the numbers of a packed text; none of an empty one.

    Raises
    ------
    ValueError
        If it is not what this module packs.

    Examples
    --------
    >>> unpack("bits:3:oA==").tolist()
    [1.0, 0.0, 1.0]
    """
    if not text:
        return np.empty(0)
    kind, _, rest = text.partition(":")
    count, _, content = rest.partition(":")
    try:
        size, data = int(count), base64.b64decode(content, validate=True)
    except (ValueError, binascii.Error):
        raise ValueError(_refusal(text)) from None
    if kind == _BITS and size > 0 and len(data) == (size + 7) // 8:
        return np.unpackbits(np.frombuffer(data, np.uint8), count=size).astype(np.float64)
    if kind in _FLOATS and size > 0 and len(data) == size * np.dtype(_FLOATS[kind]).itemsize:
        return np.frombuffer(data, _FLOATS[kind]).astype(np.float64)
    raise ValueError(_refusal(text))


def _packed(kind: str, count: int, data: bytes) -> str:
    return f"{kind}:{count}:{base64.b64encode(data).decode()}" if count else ""


def _refusal(text: str) -> str:
    return f"must be packed numbers such as 'bits:3:oA==', got {text[:40]!r}"
