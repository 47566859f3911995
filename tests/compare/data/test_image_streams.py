"""Streams of colour images, on small data sets written as the real ones lie on disk."""

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from helpers.idx_files import idx
from helpers.image_datasets import write_cifar, write_tiny_imagenet
from helpers.torchvision_shim import torchvision
from steppe.compare.data.datasets import Data
from steppe.compare.data.image_streams import five_dataset, tiny_imagenet_stream
from steppe.compare.data.images import tiny_imagenet
from steppe.compare.data.loading import loader

datasets = torchvision.datasets

_DAMAGED = {
    "A": "RGVtb2NyYXRpY2FCb2xkT2xkc3R5bGUgQm9sZC50dGY=.png",
    "F": "Q3Jvc3NvdmVyIEJvbGRPYmxpcXVlLnR0Zg==.png",
}


def write_mnist(directory: Path, name: str, brightness: int) -> None:
    """Unpacked IDX files; an image is as bright as its label says."""
    folder = directory / name / "raw"
    folder.mkdir(parents=True)
    for part, count in (("train", 100), ("t10k", 20)):
        labels = np.arange(count) % 10
        images = np.broadcast_to((brightness + 10 * labels)[:, None, None], (count, 28, 28))
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))


def write_svhn(directory: Path, patch: pytest.MonkeyPatch) -> None:
    """MATLAB files whose images run along the last axis, and whose zeros are labelled 10."""
    for split, count in (("train", 100), ("test", 20)):
        url, name, _ = datasets.SVHN.split_list[split]
        labels = np.arange(count) % 10
        pixels = np.zeros((32, 32, 3, count), dtype=np.uint8)
        pixels[0, :, 0] = 20 * labels
        savemat(directory / name, {"X": pixels, "y": np.where(labels, labels, 10)[:, None]})
        checksum = hashlib.md5((directory / name).read_bytes()).hexdigest()
        patch.setitem(datasets.SVHN.split_list, split, [url, name, checksum])


def write_notmnist(directory: Path) -> None:
    for label, letter in enumerate("ABCDEFGHIJ"):
        folder = directory / "notMNIST_small" / letter
        folder.mkdir(parents=True)
        for i in range(20):
            pixels = np.full((28, 28), 10 * label + i, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")
        if letter in _DAMAGED:
            (folder / _DAMAGED[letter]).write_bytes(b"")


@pytest.fixture
def five(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_cifar(tmp_path, monkeypatch, datasets.CIFAR10, "labels")
    write_mnist(tmp_path, "MNIST", 0)
    write_svhn(tmp_path, monkeypatch)
    write_notmnist(tmp_path)
    write_mnist(tmp_path, "FashionMNIST", 100)
    return tmp_path


def whole(samples: Any) -> tuple[torch.Tensor, torch.Tensor]:
    images, targets = zip(*(part.batch for (part,) in loader(samples, 50)), strict=True)
    return torch.cat(images), torch.cat(targets)


def test_five_data_sets_follow_each_other(five: Path) -> None:
    data = five_dataset(five)
    # Each set's tenth for validation; notMNIST's tenth for testing before that.
    assert [len(task) for task in data.train.datasets] == [90, 90, 90, 162, 90]
    assert torch.bincount(whole(data.validation)[1] // 10).tolist() == [10, 10, 10, 18, 10]
    assert torch.bincount(whole(data.test)[1] // 10).tolist() == [20] * 5
    for place, task in enumerate(data.train.datasets):
        images, targets = whole(task)
        assert images.shape[1:] == (3, 32, 32)
        assert images.dtype == torch.float32
        assert torch.equal(targets, task.targets)
        assert (targets // 10 == place).all()
    parts = [whole(task)[0] for task in data.train.datasets]
    assert torch.equal(whole(data.train)[0], torch.cat(parts))


def pixels(samples: Any, task: int, mean: Any, deviation: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the images of a task as they were in the file, and their labels."""
    images, targets = whole(samples)
    images, targets = images[targets // 10 == task], targets[targets // 10 == task]
    shape = (3, 1, 1)
    mean, deviation = (np.broadcast_to(each, 3).reshape(shape) for each in (mean, deviation))
    return 255 * (images.numpy() * deviation + mean), targets.numpy() % 10


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_every_image_keeps_its_label_and_its_pixels(five: Path, part: str) -> None:
    samples = getattr(five_dataset(five), part)
    for task, brightness, mean, deviation in (
        (1, 0, 0.1307, 0.3081),
        (4, 100, 0.2860, 0.3530),
    ):
        images, labels = pixels(samples, task, mean, deviation)
        expected = np.broadcast_to((brightness + 10 * labels)[:, None, None, None], images.shape)
        np.testing.assert_allclose(images, expected, atol=1e-2)
    mean, deviation = [0.4377, 0.4438, 0.4728], [0.1980, 0.2010, 0.1970]
    images, labels = pixels(samples, 2, mean, deviation)
    expected = np.zeros_like(images)
    expected[:, 0, 0] = 20 * labels[:, None]
    np.testing.assert_allclose(images, expected, atol=1e-2)
    images, labels = pixels(samples, 3, 0.4254, 0.4501)
    numbers = images[:, 0, 0, 0] - 10 * labels
    assert ((numbers > -0.1) & (numbers < 19.1)).all()


def test_the_fingerprint_sees_each_of_the_five(five: Path) -> None:
    prints = [five_dataset(five).fingerprint]
    for path in (
        five / "MNIST/raw/train-images-idx3-ubyte",
        five / "FashionMNIST/raw/t10k-images-idx3-ubyte",
    ):
        path.write_bytes(path.read_bytes()[:-1] + b"\7")
        prints.append(five_dataset(five).fingerprint)
    (five / "notMNIST_small/C/3.png").rename(five / "notMNIST_small/C/33.png")
    prints.append(five_dataset(five).fingerprint)
    assert len(set(prints)) == 4


@pytest.mark.parametrize(
    ("missing", "command"),
    [
        (
            "MNIST/raw/t10k-labels-idx1-ubyte",
            r'python -c "from torchvision.datasets import MNIST; ',
        ),
        ("FashionMNIST/raw/train-images-idx3-ubyte", "import FashionMNIST; FashionMNIST"),
        ("test_32x32.mat", "import SVHN; SVHN"),
        ("notMNIST_small/D", "curl http://yaroslavvb.com/upload/notMNIST/notMNIST_small.tar.gz"),
    ],
)
def test_what_is_missing_is_named_with_a_command(five: Path, missing: str, command: str) -> None:
    (five / missing).rename(five / "gone")
    with pytest.raises(FileNotFoundError) as caught:
        five_dataset(five)
    message = str(caught.value)
    assert message.startswith(f"{five / missing} is missing: ")
    assert command in message
    assert "--data DIR" in message
    code = re.search(r'python -c "(.*)", or', message)
    if code is not None:
        compile(code[1], "command", "exec")
        assert code[1].count(repr(str(five))) == (2 if "SVHN" in command else 1)


def test_a_damaged_file_of_svhn_is_refused(five: Path) -> None:
    path = five / "train_32x32.mat"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"train_32x32.mat .*damaged: python"):
        five_dataset(five)


@pytest.fixture
def tiny(tmp_path: Path) -> Data:
    names = [f"n{100 - i:08d}" for i in range(10)]
    return tiny_imagenet_stream(write_tiny_imagenet(tmp_path, names))


def test_tiny_imagenets_classes_come_five_by_five_as_listed(tiny: Data) -> None:
    assert [sorted(set(task.targets.tolist())) for task in tiny.train.datasets] == [
        [0, 1, 2, 3, 4],
        [5, 6, 7, 8, 9],
    ]
    assert [len(task) for task in tiny.train.datasets] == [45, 45]
    images, targets = whole(tiny.train.datasets[1])
    assert images.shape == (45, 3, 64, 64)
    assert torch.equal(targets, tiny.train.datasets[1].targets)
    assert whole(tiny.test)[1].tolist() == [3, 1, 4, 1, 0, 2]


def test_a_stream_of_images_is_not_augmented(tiny: Data, tmp_path: Path) -> None:
    assert tiny.unaugmented is tiny.train
    images = tiny_imagenet(tmp_path)
    plain = {int(row): images.unaugmented[i][0] for i, row in enumerate(images.unaugmented.rows)}
    for task in tiny.train.datasets:
        for row, (image, _) in zip(task.rows, task, strict=True):
            assert torch.equal(image, plain[int(row)])
