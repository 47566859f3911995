"""The IDX format of the MNIST family of data sets."""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from steppe._shared.array_types import Bytes

_UNSIGNED_BYTE = 0x08


def read_idx(path: Path) -> Bytes:
    """Read one gzipped IDX file of unsigned bytes.

    The format is two zero bytes, the type code, the number of dimensions, each dimension as a
    big-endian 32-bit integer, then the values in row-major order
    (http://yann.lecun.com/exdb/mnist).

    Parameters
    ----------
    path : Path
        The ``.gz`` file.

    Returns
    -------
    numpy.ndarray
        Of the shape the header states.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is not gzipped IDX of unsigned bytes, or is cut short or too long.
    """
    try:
        with gzip.open(path) as file:
            content = file.read()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a whole gzip file: {error}") from error
    if len(content) < 4 or content[:3] != bytes((0, 0, _UNSIGNED_BYTE)):
        raise ValueError(f"{path} is not an IDX file of unsigned bytes: starts {content[:4]!r}")
    dimensions = content[3]
    header = 4 + 4 * dimensions
    if len(content) < header:
        raise ValueError(f"{path} ends within its header of {header} bytes")
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    if len(content) - header != math.prod(shape):
        raise ValueError(
            f"{path} should hold {math.prod(shape)} values of shape {shape}, "
            f"but holds {len(content) - header}"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)
