"""An image folder, one directory a class, and a network of timm; training crops and mirrors.

IMAGES=path/to/images steppe compare examples/tasks/images.py:task --optimizers adamw,adamw+sam

Needs: pip install timm. A folder without images is filled with drawings of three shapes.
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.utils.data import Dataset

from steppe.compare import CurvatureSettings, Data, Metric, Task, held_out

FOLDER = Path(os.environ.get("IMAGES", "shapes"))
SHAPES: dict[str, Callable[..., None]] = {
    "circle": ImageDraw.ImageDraw.ellipse,
    "rectangle": ImageDraw.ImageDraw.rectangle,
    "line": ImageDraw.ImageDraw.line,
}


class Images(Dataset[tuple[Tensor, int]]):
    """Image files, scaled to 32×32, and the number of their class."""

    def __init__(self, files: list[tuple[Path, int]], *, augment: bool = False) -> None:
        self.files, self.augment = files, augment

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.files[index]
        with Image.open(path) as image:
            pixels = torch.from_numpy(np.array(image.convert("RGB").resize((32, 32))))
        pixels = pixels.permute(2, 0, 1) / 127.5 - 1
        if self.augment:
            left, top = torch.randint(0, 5, (2,)).tolist()
            padded = nn.functional.pad(pixels, (2, 2, 2, 2), value=-1.0)
            pixels = padded[:, top : top + 32, left : left + 32]
            pixels = pixels.flip(2) if torch.rand(()) < 0.5 else pixels
        return pixels, label


def draw_shapes() -> None:
    rng = np.random.default_rng(0)
    for name, draw in SHAPES.items():
        (FOLDER / name).mkdir(parents=True)
        for number in range(60):
            image = Image.fromarray(rng.integers(0, 90, (32, 32, 3), dtype=np.uint8))
            x, y = rng.integers(2, 14, 2)
            colour = tuple(rng.integers(60, 255, 3).tolist())
            size = rng.integers(8, 16)
            draw(ImageDraw.Draw(image), [(x, y), (x + size, y + size)], fill=colour)
            image.save(FOLDER / name / f"{number}.png")


def classes() -> list[str]:
    if not FOLDER.exists():
        draw_shapes()
    return sorted(path.name for path in FOLDER.iterdir() if path.is_dir())


def images() -> Data:
    files = [
        (path, label)
        for label, name in enumerate(classes())
        for path in sorted((FOLDER / name).iterdir())
    ]
    labels = torch.tensor([label for _, label in files])
    rest, test = held_out(labels, 0.2)
    train, validation = (rest[part] for part in held_out(labels[rest], 0.2))
    chosen = ([files[row] for row in rows] for rows in (train, validation, test))
    train, validation, test = chosen
    return Data(Images(train, augment=True), Images(validation), Images(test), plain=Images(train))


def make_model() -> nn.Module:
    return timm.create_model("test_resnet.r160_in1k", num_classes=len(classes()))


def is_right(outputs: Tensor, labels: Tensor) -> Tensor:
    return outputs.argmax(dim=1) == labels


task = Task(
    name="image folder",
    model=make_model,
    data=images,
    loss=nn.functional.cross_entropy,
    metrics={"accuracy": Metric(is_right, unit="%", factor=100)},
    epochs=10,
    batch_size=32,
    # Second derivatives of convolutions take long: few samples for them.
    curvature=CurvatureSettings(samples=40),
)
