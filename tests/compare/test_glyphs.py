"""Letters drawn from fonts that come with Matplotlib, put where Debian's would be."""

import shutil
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch

from steppe.compare.data.datasets import Tensors
from steppe.compare.data.glyphs import FONTS, LETTERS, PACKAGES, glyphs

_BUNDLED = Path(matplotlib.get_data_path(), "fonts", "ttf")


def directory_with(folder: Path, names: list[str]) -> Path:
    for package in PACKAGES.values():
        (folder / package).mkdir(parents=True)
    for name in names:
        shutil.copy(_BUNDLED / f"{name}.ttf", folder / "lato")
    return folder


def as_set(part: Tensors) -> set[bytes]:
    return {image.numpy().tobytes() for image in part.inputs}


def test_a_letter_fills_its_image_and_is_known_by_its_shape(tmp_path: Path) -> None:
    _, _, drawn = glyphs(directory_with(tmp_path, ["DejaVuSans"]))
    assert drawn.inputs.shape == (10, 1, 28, 28)
    assert drawn.inputs.dtype == torch.float32
    assert drawn.targets.tolist() == list(range(10))
    images = dict(zip(LETTERS, drawn.inputs[:, 0].numpy(), strict=True))
    for image in images.values():
        assert image.min() == 0
        assert 250 <= image.max() <= 255
        sides = []
        for axis in (0, 1):
            inked = np.flatnonzero(image.max(axis=axis) > 8)
            sides.append(inked[-1] - inked[0] + 1)
            assert abs(inked[0] + inked[-1] - 27) <= 1
        assert max(sides) == 24
    # A bar; two bars and a beam, alike from both sides; three beams from a bar at the left.
    assert (images["I"] > 127).sum(axis=1).max() <= 4
    np.testing.assert_allclose(images["H"], images["H"][:, ::-1], atol=60)
    rows = images["E"][:, 12:20].mean(axis=1) > 127
    assert np.count_nonzero(np.diff(rows.astype(int)) == 1) == 3


def test_a_family_of_fonts_is_never_in_two_parts(tmp_path: Path) -> None:
    families = {
        "cmb10": ["cmb10"],
        "cmmi10": ["cmmi10"],
        "cmr10": ["cmr10"],
        "cmss10": ["cmss10"],
        "cmtt10": ["cmtt10"],
        "dejavu": ["DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSansMono-Oblique"],
    }
    fonts = [font for family in families.values() for font in family]
    parts = glyphs(directory_with(tmp_path / "all", fonts))
    assert [len(part) for part in parts] == [60, 10, 20]
    for part in parts:
        assert torch.bincount(part.targets).tolist() == [len(part) // 10] * 10
        # Wide letters too keep a margin.
        assert (part.inputs[..., [0, 1, 26, 27]] == 0).all()
    train, validation, test = map(as_set, parts)
    alone = {
        family: as_set(glyphs(directory_with(tmp_path / family, names))[2])
        for family, names in families.items()
    }
    # In the order of their names, seven of ten come after two for testing and one for validation.
    assert alone["cmb10"] | alone["cmmi10"] == test
    assert alone["cmr10"] == validation
    assert alone["cmss10"] | alone["cmtt10"] | alone["dejavu"] == train


def test_fonts_without_letters_are_left_out(tmp_path: Path) -> None:
    folder = directory_with(tmp_path, ["DejaVuSans"]) / "lato"
    shutil.copy(folder / "DejaVuSans.ttf", folder / "fauxsnow.ttf")
    (folder / "readme.txt").write_text("no font")
    assert [len(part) for part in glyphs(tmp_path)] == [0, 0, 10]


def test_a_missing_package_is_named_with_the_command_for_all(tmp_path: Path) -> None:
    directory_with(tmp_path, []).joinpath("open-sans").rmdir()
    with pytest.raises(FileNotFoundError) as caught:
        glyphs(tmp_path)
    command = f"apt-get install {' '.join(PACKAGES)}"
    assert str(caught.value) == f"{tmp_path / 'open-sans'} is missing: {command}"


@pytest.mark.skipif(
    not all((FONTS / folder).is_dir() for folder in PACKAGES.values()),
    reason=f"fonts are not installed: apt-get install {' '.join(PACKAGES)}",
)
def test_debians_fonts_give_thousands_of_letters() -> None:
    parts = glyphs()
    for part, least in zip(parts, (3_000, 300, 800), strict=True):
        assert len(part) > least
        assert torch.bincount(part.targets).tolist() == [len(part) // 10] * 10
        # Something is drawn in each, and few are alike.
        assert (part.inputs.amax(dim=(1, 2, 3)) > 40).all()
        assert len(as_set(part)) > 0.97 * len(part)
