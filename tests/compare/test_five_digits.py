"""The stream from packages: true digits, beside small stand-ins for what takes long to read."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.idx_files import write_fashion_mnist
from steppe.compare import five_digits as module
from steppe.compare.data import Data, Tensors, digits
from steppe.compare.five_digits import five_digits
from steppe.compare.idx import read_idx

_TRAINED, _TESTED = 240, 40


def drawn(sizes: tuple[int, int, int]) -> tuple[Tensors, Tensors, Tensors]:
    """Make images of noise, of ten classes in turn."""
    generator = torch.Generator().manual_seed(sum(sizes))
    train, validation, test = (
        Tensors(
            torch.randint(256, (size, 1, 28, 28), generator=generator).float(),
            torch.arange(size) % 10,
        )
        for size in sizes
    )
    return train, validation, test


LETTERS = drawn((70, 10, 20))
_MNIST = drawn((50, 10, 30))
MNIST = Data(_MNIST[0], *_MNIST, fingerprint="mnist")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fashion_mnist(tmp_path_factory.mktemp("fashion"), _TRAINED, _TESTED, classes=10)


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "glyphs", lambda: LETTERS)
        patch.setattr(module, "mnist_5k", lambda: MNIST)
        yield patch


@pytest.fixture(scope="module")
def loaded(directory: Path, quick: pytest.MonkeyPatch) -> Data:
    return five_digits(directory)


def test_each_task_has_its_ten_classes_in_all_parts(loaded: Data) -> None:
    assert [len(task) for task in loaded.stream] == [110, 50, 1006, 70, 110]
    assert len(loaded.train) == len(loaded.plain) == 110 + 50 + 1006 + 70 + 110
    for part, sizes in (
        (loaded.train, [110, 50, 1006, 70, 110]),
        (loaded.validation, [10, 10, 251, 10, 10]),
        (loaded.test, [20, 30, 540, 20, 20]),
    ):
        assert part.inputs.shape[1:] == (1, 28, 28)
        assert torch.bincount(part.targets // 10).tolist() == sizes
        assert len(torch.bincount(part.targets)) == 50
        assert (torch.bincount(part.targets) > 0).all()


def test_each_task_is_standardised_by_its_own_training_images(loaded: Data) -> None:
    for task in loaded.stream:
        pixels = task.inputs.double()
        assert float(pixels.mean()) == pytest.approx(0, abs=1e-6)
        assert float(pixels.std()) == pytest.approx(1, abs=1e-6)
    train, validation, _ = LETTERS
    expected = (validation.inputs - train.inputs.mean()) / train.inputs.std()
    found = loaded.validation.inputs[loaded.validation.targets // 10 == 3]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("part", "file"), [("train", "train"), ("test", "t10k")])
def test_no_garment_is_in_both_tasks_and_the_last_lie_as_negatives(
    loaded: Data, directory: Path, part: str, file: str
) -> None:
    raw = read_idx(directory / f"{file}-images-idx3-ubyte.gz").astype(np.float64)
    labels = read_idx(directory / f"{file}-labels-idx1-ubyte.gz")
    # Every image is known by its darkest-to-brightest order, which standardising keeps.
    known = {image.argsort(axis=None, kind="stable").tobytes(): i for i, image in enumerate(raw)}
    samples = (loaded.train, loaded.validation) if part == "train" else (loaded.test,)
    found: dict[int, list[int]] = {0: [], 4: []}
    for image, target in (pair for each in samples for pair in each):
        task, label = divmod(int(target), 10)
        if task not in found:
            continue
        upright = image[0].numpy() if task == 0 else -image[0].numpy()[::-1].T
        row = known.get(upright.argsort(axis=None, kind="stable").tobytes())
        assert row is not None
        assert labels[row] == label
        found[task].append(row)
    assert len(found[0]) == len(found[4]) == len(raw) // 2
    assert sorted(found[0] + found[4]) == list(range(len(raw)))


def test_digits_are_enlarged_as_pillow_does(loaded: Data) -> None:
    enlarged = np.stack(
        [
            np.asarray(
                Image.fromarray(image[0].numpy()).resize((28, 28), Image.Resampling.BILINEAR)
            )
            for image in digits().plain.inputs
        ]
    )
    expected = (enlarged - enlarged.mean()) / enlarged.std(ddof=1)
    np.testing.assert_allclose(loaded.stream[2].inputs[:, 0].numpy(), expected, atol=1e-4)


def test_the_fingerprint_sees_garments_and_letters(
    loaded: Data, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert five_digits(directory).fingerprint == loaded.fingerprint
    other = write_fashion_mnist(tmp_path, _TRAINED, _TESTED, classes=10, seed=1)
    assert five_digits(other).fingerprint != loaded.fingerprint
    monkeypatch.setattr(module, "glyphs", lambda: LETTERS[::-1])
    assert five_digits(directory).fingerprint != loaded.fingerprint


def test_missing_garments_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="apt-get install dataset-fashion-mnist"):
        five_digits(tmp_path)
