"""Small sets of the MNIST family, written as the real ones lie on disk."""

import gzip
import struct
from pathlib import Path

import numpy as np


def idx(values: np.ndarray) -> bytes:
    header = bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape)
    return header + values.astype(np.uint8).tobytes()


def write_idx(path: Path, values: np.ndarray) -> None:
    path.write_bytes(gzip.compress(idx(values)))


def write_fashion_mnist(directory: Path, trained: int, tested: int, *, classes: int) -> Path:
    """Write random images whose labels go through the classes in turn."""
    random = np.random.default_rng(0)
    for part, count in (("train", trained), ("t10k", tested)):
        images = random.integers(0, 256, (count, 28, 28))
        write_idx(directory / f"{part}-images-idx3-ubyte.gz", images)
        write_idx(directory / f"{part}-labels-idx1-ubyte.gz", np.arange(count) % classes)
    return directory
