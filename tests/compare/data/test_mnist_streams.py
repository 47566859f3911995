"""Split, permuted and rotated MNIST, against the digits of MNIST-5k that they are made from."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch

from steppe.compare.data import mnist_streams
from steppe.compare.data.datasets import Data, mnist_5k, subsample
from steppe.compare.data.mnist_streams import permuted_mnist, rotated_mnist, split_mnist
from steppe.compare.tasks.source import find_task

PARTS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def untouched() -> Data:
    return mnist_5k()


@pytest.fixture(scope="module")
def permuted() -> Data:
    return permuted_mnist()


@pytest.fixture(scope="module")
def rotated() -> Data:
    return rotated_mnist()


@pytest.fixture
def few(untouched: Data, monkeypatch: pytest.MonkeyPatch) -> Data:
    """Make streams of a quarter of the digits: to rotate them all takes seconds."""
    found = subsample(untouched, 100)
    monkeypatch.setattr(mnist_streams, "mnist_5k", lambda: found)
    return found


def images(data: Data, part: str, task: int) -> np.ndarray:
    """Return a task's images in one of its parts, 28×28 each."""
    return getattr(data, part).datasets[task].inputs[:, 0].numpy()


def labels(data: Data, part: str, task: int) -> list[int]:
    stream = getattr(data, part)
    targets, classes = stream.datasets[task].targets, 10 if len(stream.datasets) == 10 else 2
    assert (targets // classes == task).all()
    return (targets % classes).tolist()


def test_split_mnist_has_every_digit_in_its_own_task(untouched: Data) -> None:
    data = split_mnist()
    assert [len(task) for task in data.train.datasets] == [640] * 5
    for part in PARTS:
        samples, whole = getattr(data, part), getattr(untouched, part)
        # Images are all different, so that an image tells its row.
        rows = {image.tobytes(): row for row, image in enumerate(whole.inputs.numpy())}
        found = [rows.pop(image.numpy().tobytes()) for image, _ in samples]
        assert not rows
        assert [int(target) for _, target in samples] == whole.targets[found].tolist()
        for task in range(5):
            assert set(labels(data, part, task)) == {0, 1}
            assert len(labels(data, part, task)) == len(whole) // 5
    assert [sorted(set(task.targets.tolist())) for task in data.train.datasets] == [
        [0, 1],
        [2, 3],
        [4, 5],
        [6, 7],
        [8, 9],
    ]


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["permuted", "rotated"])
def test_no_image_is_in_two_parts(kind: str, request: pytest.FixtureRequest) -> None:
    data: Data = request.getfixturevalue(kind)
    for task in range(10):
        parts = [{image.tobytes() for image in images(data, part, task)} for part in PARTS]
        assert [len(part) for part in parts] == [3200, 800, 1000]
        assert len(set.union(*parts)) == 5000


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("kind", ["permuted", "rotated"])
def test_each_task_has_all_digits_of_the_part_in_their_order(
    kind: str, part: str, untouched: Data, request: pytest.FixtureRequest
) -> None:
    data, whole = request.getfixturevalue(kind), getattr(untouched, part)
    assert len(getattr(data, part).datasets) == 10
    assert len(getattr(data, part)) == 10 * len(whole)
    for task in range(10):
        assert labels(data, part, task) == whole.targets.tolist()
    np.testing.assert_array_equal(images(data, part, 0), whole.inputs[:, 0].numpy())


def test_a_task_s_permutation_is_one_and_the_same_for_all_its_images(
    permuted: Data, untouched: Data
) -> None:
    def pixels(task: int) -> np.ndarray:
        return np.concatenate([images(permuted, part, task) for part in PARTS]).reshape(5000, 784)

    # A pixel's values over all images, of all parts: one permutation for all moves these as they
    # are, and nothing else does.
    whole = np.concatenate([getattr(untouched, part).inputs.flatten(1).numpy() for part in PARTS])
    expected = Counter(column.tobytes() for column in whole.T)
    tasks = [pixels(task) for task in range(10)]
    for task in tasks:
        assert Counter(column.tobytes() for column in task.T) == expected
    assert len({task.tobytes() for task in tasks}) == 10


@pytest.mark.thorough
def test_rotations_are_of_18_degrees_each(rotated: Data, untouched: Data) -> None:
    for part in PARTS:
        whole = getattr(untouched, part).inputs[:, 0].numpy()
        np.testing.assert_array_equal(
            images(rotated, part, 5), np.rot90(whole, axes=(1, 2)), strict=True
        )
    # Five steps on, everything has turned by a right angle, interpolated or not.
    for task in range(5):
        turned = np.rot90(images(rotated, "test", task), axes=(1, 2))
        np.testing.assert_allclose(images(rotated, "test", task + 5), turned, atol=1e-5)


def test_a_rotation_turns_about_the_centre(rotated: Data, untouched: Data) -> None:
    """The centre of mass of ink goes along a circle, counterclockwise."""
    background = untouched.test.inputs.min().item()

    def centres(task: int) -> np.ndarray:
        ink = images(rotated, "test", task).astype(np.float64) - background
        assert ink.min() >= -1e-6
        places = np.arange(28) - 13.5
        mass = ink.sum((1, 2))
        across = (ink.sum(1) @ places) / mass
        upwards = -(ink.sum(2) @ places) / mass
        return across + 1j * upwards

    # Digits within the circle that the image's sides touch: whatever the angle, no ink is lost.
    radii = np.hypot(*np.meshgrid(np.arange(28) - 13.5, np.arange(28) - 13.5))
    outside = images(rotated, "test", 0)[:, radii > 12.5]
    fits = (outside <= background).all(axis=1)
    assert fits.sum() > 300
    start = centres(0)
    assert np.abs(start[fits]).max() > 1
    for task in range(10):
        expected = start * np.exp(1j * np.radians(18 * task))
        np.testing.assert_allclose(centres(task)[fits], expected[fits], atol=0.08)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("load", [permuted_mnist, rotated_mnist])
def test_streams_are_the_same_each_time_whatever_the_seed(load: Callable[[], Data]) -> None:
    first = load()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    second = load()
    assert torch.equal(torch.get_rng_state(), state)
    assert first.fingerprint == second.fingerprint
    for one, other in zip(first.train.datasets, second.train.datasets, strict=True):
        assert torch.equal(one.inputs, other.inputs)
        assert torch.equal(one.targets, other.targets)


def test_fingerprints_see_digits_permutations_and_angles(
    few: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    prints = {few.fingerprint, split_mnist().fingerprint}
    prints |= {permuted_mnist().fingerprint, rotated_mnist().fingerprint}
    monkeypatch.setattr(mnist_streams, "_PERMUTATION_SEED", 1)
    monkeypatch.setattr(mnist_streams, "ROTATED_TASKS", 9)
    prints |= {permuted_mnist().fingerprint, rotated_mnist().fingerprint}
    assert len(prints) == 6


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["split-mnist", "permuted-mnist", "rotated-mnist"])
def test_a_network_has_an_output_a_digit(name: str) -> None:
    task, data = find_task(name).task({"scale": "small", "samples": 20}).load()
    assert {len(each) for each in data.train.datasets} == {20}
    inputs, targets = map(torch.stack, zip(*data.test, strict=True))
    torch.manual_seed(0)
    with torch.no_grad():
        outputs = task.model()(inputs)
    assert outputs.shape == (len(data.test), 10)
    # Of 10 classes in a shared head, or 2 in a task's own, a new network knows nothing yet.
    assert task.loss(outputs, targets).item() == pytest.approx(
        np.log(10 if task.domain_incremental else 2), abs=0.2
    )


def test_a_shared_head_is_scored_by_the_digit_whatever_the_task() -> None:
    task = find_task("permuted-mnist").task()
    targets = torch.tensor([3, 13, 23, 27, 99])
    outputs = torch.nn.functional.one_hot(torch.tensor([3, 3, 4, 7, 9]), 10).float()
    (metric,) = task.metrics.values()
    assert metric.values(outputs, targets).tolist() == [True, True, False, True, True]
    expected = torch.nn.functional.cross_entropy(outputs, torch.tensor([3, 3, 3, 7, 9]))
    assert task.loss(outputs, targets).item() == expected.item()
