"""Small sets of images, written as the real ones lie on disk."""

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

CLASSES = 5


def write_cifar(
    directory: Path, monkeypatch: pytest.MonkeyPatch, dataset: Any, key: str, per_batch: int = 20
) -> Path:
    """Write pickled batches of random images, and have torchvision expect their checksums."""
    folder = directory / dataset.base_folder
    folder.mkdir()
    random = np.random.default_rng(0)

    def written(name: str, content: dict[str, Any]) -> str:
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    def batch(name: str) -> list[str]:
        pixels = random.integers(0, 256, (per_batch, 3 * 32 * 32), dtype=np.uint8)
        labels = [i % CLASSES for i in range(per_batch)]
        return [name, written(name, {"data": pixels, key: labels})]

    for part in ("train_list", "test_list"):
        checked = [batch(name) for name, _ in getattr(dataset, part)]
        monkeypatch.setattr(dataset, part, checked)
    names = {dataset.meta["key"]: [f"class {i}" for i in range(CLASSES)]}
    monkeypatch.setitem(dataset.meta, "md5", written(dataset.meta["filename"], names))
    return directory


def save_jpeg(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path, quality=95)


def write_tiny_imagenet(directory: Path, names: list[str]) -> Path:
    """As in tiny-imagenet-200.zip: ten training images a class, one of them grey.

    Every image to test on is as bright as its class: 40 × its line in wnids.txt.
    """
    random = np.random.default_rng(0)
    folder = directory / "tiny-imagenet-200"
    for name in names:
        images = [f"{name}_{i}.JPEG" for i in range(10)]
        for i, image in enumerate(images):
            shape = (64, 64) if i == 0 else (64, 64, 3)
            save_jpeg(folder / "train" / name / "images" / image, random.integers(0, 256, shape))
        boxes = "".join(f"{image}\t0\t10\t63\t58\n" for image in images)
        (folder / "train" / name / f"{name}_boxes.txt").write_text(boxes)
    annotations = ""
    for i, label in enumerate([3, 1, 4, 1, 0, 2]):
        save_jpeg(folder / "val" / "images" / f"val_{i}.JPEG", np.full((64, 64, 3), 40 * label))
        annotations += f"val_{i}.JPEG\t{names[label]}\t0\t32\t44\t62\n"
    (folder / "val" / "val_annotations.txt").write_text(annotations)
    (folder / "wnids.txt").write_text("\n".join(names) + "\n")
    save_jpeg(folder / "test" / "images" / "test_0.JPEG", np.zeros((64, 64, 3)))
    return directory
