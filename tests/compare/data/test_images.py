"""Loaders of images, on small data sets written as the real ones lie on disk."""

import hashlib
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.image_datasets import CLASSES, save_jpeg, write_cifar, write_tiny_imagenet
from helpers.torchvision_shim import torchvision
from steppe.compare.data.datasets import Data, subsample
from steppe.compare.data.images import cifar10, cifar100, imagenet, tiny_imagenet
from steppe.compare.data.loading import loader

# From Python 3.12 on, for any process that has threads, which torch's has.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

datasets = torchvision.datasets


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    names = ["n02124075", "n01443537", "n09428293", "n04067472", "n07695742"]
    return write_tiny_imagenet(tmp_path, names)


@pytest.fixture
def big(tmp_path: Path) -> Path:
    """As torchvision unpacks ImageNet: images of many sizes, wider or higher than 224."""
    random = np.random.default_rng(0)
    for name in ("n01440764", "n01443537"):
        for part, count in (("train", 50), ("val", 2)):
            for i in range(count):
                height, width = random.integers(16, 40, 2)
                path = tmp_path / part / name / f"{name}_{i}.JPEG"
                save_jpeg(path, random.integers(0, 256, (height, width, 3)))
    return tmp_path


@pytest.fixture
def load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Callable[[str], Data]:
    """Load a small data set by the name of its task."""
    write = partial(write_cifar, tmp_path, monkeypatch)

    def loaded(name: str) -> Data:
        if name == "cifar10":
            return cifar10(write(datasets.CIFAR10, "labels"))
        if name == "cifar100":
            return cifar100(write(datasets.CIFAR100, "fine_labels", per_batch=100))
        if name == "tiny-imagenet":
            return tiny_imagenet(request.getfixturevalue("tiny"))
        return imagenet(request.getfixturevalue("big"))

    return loaded


ALL = {
    "cifar10": ((90, 10, 20), 32),
    "cifar100": ((90, 10, 100), 32),
    "tiny-imagenet": ((45, 5, 6), 64),
    "imagenet": ((98, 2, 4), 224),
}


@pytest.mark.parametrize("name", ALL)
def test_parts_are_stratified_disjoint_and_of_the_right_shape(load, name: str) -> None:
    data, (sizes, side) = load(name), ALL[name]
    parts = (data.train, data.validation, data.test)
    assert tuple(map(len, parts)) == sizes
    for part in (*parts, data.plain):
        image, target = part[0]
        assert image.shape == (3, side, side)
        assert image.dtype == torch.float32
        assert target == part.targets[0]
    assert torch.equal(data.train.targets, data.plain.targets)
    for part in parts[:2]:
        counts = torch.bincount(part.targets)
        assert (counts == counts[0]).all()
    kept, held = ({image.numpy().tobytes() for image, _ in part} for part in (data.plain, parts[1]))
    assert len(kept | held) == sum(sizes[:2])


@pytest.mark.parametrize("name", ALL)
def test_augmentation_changes_training_only_and_repeats_with_the_seed(load, name: str) -> None:
    data = load(name)

    def first(part: Any, seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.stack([image for image, _ in islice(part, 5)])

    assert torch.equal(first(data.train, 1), first(data.train, 1))
    assert not torch.equal(first(data.train, 1), first(data.train, 2))
    assert not torch.equal(first(data.train, 1), first(data.plain, 1))
    for part in (data.plain, data.validation, data.test):
        assert torch.equal(first(part, 1), first(part, 2))


def test_cifars_pixels_are_normalised_by_channel(load, tmp_path: Path) -> None:
    data = load("cifar10")
    content = pickle.loads((tmp_path / "cifar-10-batches-py" / "test_batch").read_bytes())
    pixels = content["data"].reshape(-1, 3, 32, 32) / 255
    mean = np.array([0.4914, 0.4822, 0.4465])[:, None, None]
    deviation = np.array([0.2470, 0.2435, 0.2616])[:, None, None]
    images = torch.stack([image for image, _ in data.test])
    np.testing.assert_allclose(images.numpy(), (pixels - mean) / deviation, rtol=1e-4, atol=1e-5)
    assert data.test.targets.tolist() == content["labels"]


def test_a_crop_is_a_part_of_the_padded_image_or_of_its_mirror_image(load) -> None:
    data = load("cifar10")
    black = torch.tensor([(0 - 0.4914) / 0.2470, (0 - 0.4822) / 0.2435, (0 - 0.4465) / 0.2616])
    padded = black[:, None, None].repeat(1, 40, 40)
    padded[:, 4:36, 4:36] = data.plain[0][0]
    crops = padded.unfold(1, 32, 1).unfold(2, 32, 1).permute(1, 2, 0, 3, 4).reshape(81, -1)
    possible = torch.cat((crops, crops.unflatten(1, (3, 32, 32)).flip(-1).flatten(1)))
    torch.manual_seed(0)
    drawn = torch.stack([data.train[0][0].flatten() for _ in range(200)])
    distance = torch.cdist(drawn, possible, compute_mode="donot_use_mm_for_euclid_dist")
    assert distance.min(dim=1).values.max() < 1e-3
    found = distance.argmin(dim=1)
    assert (found < 81).float().mean() == pytest.approx(0.5, abs=0.1)
    assert set((found % 81 // 9).tolist()) == set((found % 9).tolist()) == set(range(9))


def test_tiny_imagenets_classes_are_numbered_as_listed(load) -> None:
    data = load("tiny-imagenet")
    assert data.test.targets.tolist() == [3, 1, 4, 1, 0, 2]
    mean = torch.tensor([0.4802, 0.4481, 0.3975])
    deviation = torch.tensor([0.2770, 0.2691, 0.2821])
    for image, target in data.test:
        brightness = (image.mean(dim=(1, 2)) * deviation + mean) * 255
        torch.testing.assert_close(brightness, torch.full((3,), 40.0 * target), rtol=0, atol=2)


def test_imagenets_test_images_are_their_middle(tmp_path: Path) -> None:
    # Its shorter side is 256 already; only the middle 224 columns and rows are white.
    pixels = np.zeros((256, 300, 3))
    pixels[16:240, 38:262] = 255
    save_jpeg(tmp_path / "val" / "n01440764" / "x.JPEG", pixels)
    for i in range(50):
        save_jpeg(tmp_path / "train" / "n01440764" / f"{i}.JPEG", np.full((30, 30, 3), i))
    image, _ = imagenet(tmp_path).test[0]
    white = (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    expected = white[:, None, None].expand(3, 220, 220)
    torch.testing.assert_close(image[:, 2:-2, 2:-2], expected, rtol=0, atol=0.2)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_pass_repeats_with_the_seed_in_workers_too(load, workers: int) -> None:
    data = load("cifar10")

    def two_passes(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(seed)
        batches = loader(data.train, 32, order=torch.Generator().manual_seed(seed), workers=workers)
        return [torch.cat([part.batch[0] for (part,) in batches]) for _ in range(2)]

    first, again, other = two_passes(1), two_passes(1), two_passes(2)
    assert all(map(torch.equal, first, again))
    assert not torch.equal(*first)
    assert not torch.equal(first[0], other[0])


def test_fewer_images_are_still_augmented_in_training_alone(load) -> None:
    data = load("cifar10")
    some = subsample(data, 15)
    assert [len(part) for part in (some.train, some.plain, some.validation)] == [15, 15, 7]
    assert torch.bincount(some.train.targets).tolist() == [3] * CLASSES
    whole = {image.numpy().tobytes() for image, _ in data.plain}
    assert {image.numpy().tobytes() for image, _ in some.plain} < whole
    assert not {image.numpy().tobytes() for image, _ in some.train} <= whole


def test_the_fingerprint_sees_a_pixel_a_name_and_a_size(
    load, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny / "tiny-imagenet-200"
    prints = [tiny_imagenet(tiny).fingerprint]
    path = folder / "train" / "n04067472" / "images" / "n04067472_3.JPEG"
    path.write_bytes(path.read_bytes() + b"\0")
    prints.append(tiny_imagenet(tiny).fingerprint)
    path.rename(path.with_stem("n04067472_33"))
    prints.append(tiny_imagenet(tiny).fingerprint)

    prints.append(load("cifar10").fingerprint)
    batch = tiny / "cifar-10-batches-py" / "data_batch_4"
    content = pickle.loads(batch.read_bytes())
    content["data"][7, 100] ^= 1
    batch.write_bytes(pickle.dumps(content, protocol=2))
    checked = [
        [name, hashlib.md5((batch.parent / name).read_bytes()).hexdigest()]
        for name, _ in datasets.CIFAR10.train_list
    ]
    monkeypatch.setattr(datasets.CIFAR10, "train_list", checked)
    prints.append(cifar10(tiny).fingerprint)
    assert len(set(prints)) == 5


def test_the_folder_may_lie_anywhere(tiny: Path, tmp_path: Path) -> None:
    before = tiny_imagenet(tiny).fingerprint
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tiny / "tiny-imagenet-200").rename(elsewhere / "tiny-imagenet-200")
    assert tiny_imagenet(elsewhere).fingerprint == before


@pytest.mark.parametrize(
    "missing",
    [
        "wnids.txt",
        "val/val_annotations.txt",
        "val/images/val_4.JPEG",
        "train/n09428293/images",
    ],
)
def test_what_is_missing_of_tiny_imagenet_is_named(tiny: Path, missing: str) -> None:
    path = tiny / "tiny-imagenet-200" / missing
    path.rename(tiny / "gone")
    with pytest.raises(FileNotFoundError) as caught:
        tiny_imagenet(tiny)
    assert str(caught.value).startswith(f"{path} is missing: curl ")
    assert f"unzip -q '{tiny}/tiny-imagenet-200.zip' -d '{tiny}'" in str(caught.value)
    assert "--data DIR" in str(caught.value)


@pytest.mark.parametrize("missing", ["data_batch_3", "test_batch", "batches.meta"])
def test_what_is_missing_of_cifar_is_named(load, tmp_path: Path, missing: str) -> None:
    load("cifar10")
    path = tmp_path / "cifar-10-batches-py" / missing
    path.unlink()
    with pytest.raises(FileNotFoundError) as caught:
        cifar10(tmp_path)
    assert str(caught.value).startswith(f"{path} is missing: python -c ")


@pytest.mark.thorough
def test_the_command_that_the_error_names_downloads_cifar(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        cifar100(tmp_path)
    code = re.search(r'python -c "(.*)", or', str(caught.value))
    assert code is not None
    stub = "import helpers.torchvision_shim, torchvision.datasets.cifar as c\n"
    stub += "c.CIFAR10.download = lambda self: print('downloads to', self.root)\n"
    done = subprocess.run(
        [sys.executable, "-c", stub + code[1]],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout == f"downloads to {tmp_path}\n"


def test_a_damaged_file_of_cifar_is_refused(load, tmp_path: Path) -> None:
    load("cifar10")
    path = tmp_path / "cifar-10-batches-py" / "data_batch_2"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="cifar-10-batches-py is damaged: delete it, then python"):
        cifar10(tmp_path)


@pytest.mark.parametrize("missing", ["train", "val"])
def test_what_is_missing_of_imagenet_is_named(big: Path, missing: str) -> None:
    (big / missing).rename(big / "gone")
    with pytest.raises(FileNotFoundError) as caught:
        imagenet(big)
    assert str(caught.value).startswith(f"{big / missing} is missing: python -c ")
    assert f"https://image-net.org/download into {big}" in str(caught.value)


def test_imagenets_two_folders_have_the_same_classes(big: Path) -> None:
    (big / "val" / "n01443537").rename(big / "val" / "n99999999")
    with pytest.raises(ValueError, match=r"differ in their classes: n01443537"):
        imagenet(big)
