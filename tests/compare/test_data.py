"""Loaders on files in the true format, splits and standardisation."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from steppe.compare.data import FASHION_MNIST, digits, fashion_mnist, mnist_5k
from steppe.compare.idx import read_idx

FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)


def write_idx(path: Path, values: np.ndarray) -> None:
    header = bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape)
    path.write_bytes(gzip.compress(header + values.astype(np.uint8).tobytes()))


@pytest.fixture
def small_fashion(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for part, count in (("train", 7), ("t10k", 3)):
        write_idx(
            tmp_path / f"{part}-images-idx3-ubyte.gz", random.integers(0, 256, (count, 28, 28))
        )
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte.gz", np.arange(count))
    return tmp_path


def test_idx_keeps_shape_and_order(tmp_path: Path) -> None:
    values = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    write_idx(tmp_path / "x.gz", values)
    np.testing.assert_array_equal(read_idx(tmp_path / "x.gz"), values)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no gzip at all", "not a whole gzip file"),
        (gzip.compress(bytes(range(200)))[:-9], "not a whole gzip file"),
        (gzip.compress(b"\x00\x00\x0d\x01" + struct.pack(">I", 1) + b"1234"), "unsigned bytes"),
        (gzip.compress(b""), "unsigned bytes"),
        (gzip.compress(b"\x00\x00\x08\x03\x00"), "within its header of 16 bytes"),
        (gzip.compress(b"\x00\x00\x08\x01" + struct.pack(">I", 5) + b"123"), "should hold 5"),
        (gzip.compress(b"\x00\x00\x08\x01" + struct.pack(">I", 2) + b"123"), "should hold 2"),
    ],
    ids=["plain", "cut gzip", "floats", "empty", "cut header", "too few", "too many"],
)
def test_damaged_idx_is_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "damaged.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_idx(path)
    assert "damaged.gz" in str(caught.value)


def test_fashion_mnist_is_standardised_by_its_training_images(small_fashion: Path) -> None:
    data = fashion_mnist(small_fashion)
    raw = read_idx(small_fashion / FILES[0]).astype(np.float64)
    test = read_idx(small_fashion / FILES[2]).astype(np.float64)
    assert data.train_inputs.shape == (7, 1, 28, 28)
    assert data.train_targets.tolist() == list(range(7))
    scaled = (test - raw.mean()) / raw.std(ddof=1)
    np.testing.assert_allclose(data.test_inputs[:, 0].numpy(), scaled, rtol=1e-4, atol=1e-5)
    assert data.test_targets.tolist() == [0, 1, 2]


@pytest.mark.parametrize("missing", FILES)
def test_a_missing_file_is_named_with_two_remedies(small_fashion: Path, missing: str) -> None:
    (small_fashion / missing).unlink()
    with pytest.raises(FileNotFoundError) as caught:
        fashion_mnist(small_fashion)
    message = str(caught.value)
    assert str(small_fashion / missing) in message
    assert "apt-get install dataset-fashion-mnist" in message
    assert "--data DIR" in message


def test_images_and_labels_must_match(small_fashion: Path) -> None:
    write_idx(small_fashion / FILES[1], np.arange(6))
    with pytest.raises(ValueError, match=r"7 images.* 6 labels"):
        fashion_mnist(small_fashion)


@pytest.mark.skipif(
    not FASHION_MNIST.is_dir(), reason="the Debian package dataset-fashion-mnist is not installed"
)
def test_debians_fashion_mnist_is_whole() -> None:
    data = fashion_mnist()
    assert torch.bincount(data.train_targets).tolist() == [6000] * 10
    assert torch.bincount(data.test_targets).tolist() == [1000] * 10


@pytest.mark.parametrize(
    ("load", "samples", "shape", "tested"),
    [(digits, 1797, (1, 8, 8), 0.3), (mnist_5k, 5000, (1, 28, 28), 0.2)],
)
def test_split_is_whole_stratified_and_standardised(load, samples, shape, tested) -> None:
    data = load()
    assert data.train_inputs.shape[1:] == shape
    assert len(data.train_targets) + len(data.test_targets) == samples
    share = torch.bincount(data.test_targets) / (
        torch.bincount(data.test_targets) + torch.bincount(data.train_targets)
    )
    torch.testing.assert_close(share, torch.full((10,), tested), atol=0.01, rtol=0)
    assert data.train_inputs.mean().item() == pytest.approx(0.0, abs=1e-5)
    assert data.train_inputs.std().item() == pytest.approx(1.0, abs=1e-5)
    assert data.test_inputs.mean().item() != pytest.approx(0.0, abs=1e-5)


def test_the_split_is_always_the_same() -> None:
    torch.manual_seed(1)
    first = digits().fingerprint()
    torch.manual_seed(2)
    assert digits().fingerprint() == first


def test_the_fingerprint_sees_a_single_value(toy_data) -> None:
    before = toy_data.fingerprint()
    toy_data.test_targets[0] = 1 - toy_data.test_targets[0]
    assert toy_data.fingerprint() != before
