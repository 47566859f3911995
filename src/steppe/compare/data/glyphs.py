"""The letters A to J drawn from fonts, as notMNIST was made (Bulatov 2011)."""

import hashlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steppe._shared.cache import cached_tensors
from steppe._shared.optional_packages import needed
from steppe._shared.progress import progress
from steppe.compare.data.datasets import Tensors

LETTERS = "ABCDEFGHIJ"

#: Debian's packages of fonts, and the folder that each fills alone.
PACKAGES = {
    "fonts-aenigma": "aenigma",
    "fonts-dustin": "dustin",
    "fonts-freefont-ttf": "freefont",
    "fonts-lato": "lato",
    "fonts-open-sans": "open-sans",
    "fonts-paratype": "paratype",
}
FONTS = Path("/usr/share/fonts/truetype")

# Looked at one by one: stars, snow, bits and mazes where letters should be.
_SYMBOLS = {
    "90stars",
    "bin01st",
    "binx01s",
    "bitbttf",
    "entlayrb",
    "fauxsnow",
    "hdmaker",
    "lineding",
    "snailets",
    "symmetry",
    "unrespon",
}

_SIDE, _MARGIN = 28, 2
# Part of the name that drawings are kept under: to be raised when they are made differently.
_EDITION = 1
# Drawn larger than needed and scaled down, so that every font fills the image alike.
_POINTS = 64


def glyphs(directory: Path = FONTS) -> tuple[Tensors, Tensors, Tensors]:
    """Ten letters of each of some 530 fonts, white on black, 28×28 pixels from 0 to 255.

    Each is cropped to its ink, scaled to 24 pixels along its longer side, and centred. Of every ten
    families of fonts seven are to train on, one is for validation and two for testing; a family,
    that is all fonts whose names begin with the same word, is never in two of these.

    Parameters
    ----------
    directory : Path
        Where the packages' folders are; the default is where Debian puts them.

    Returns
    -------
    tuple of Tensors
        To train on, for validation, and for testing; the targets count from A.

    Raises
    ------
    FileNotFoundError
        If a package's folder is missing; the message names it and says how to get it.
    """
    fonts = _fonts(directory)
    families = [_family(path) for path in fonts]
    places = {family: place % 10 for place, family in enumerate(sorted(set(families)))}
    place = np.array([places[family] for family in families])
    pixels = cached_tensors(f"glyphs-{_key(fonts)}", lambda: {"pixels": _drawn(fonts)})["pixels"]
    tested, validated = place < 2, place == 2
    return (
        _tensors(pixels[torch.from_numpy(~(tested | validated))]),
        _tensors(pixels[torch.from_numpy(validated)]),
        _tensors(pixels[torch.from_numpy(tested)]),
    )


def _fonts(directory: Path) -> list[Path]:
    folders = [directory / name for name in PACKAGES.values()]
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is missing: apt-get install {' '.join(PACKAGES)}")
    files = (path for folder in folders for path in sorted(folder.glob("*.ttf")))
    return [path for path in files if path.stem not in _SYMBOLS]


def _family(path: Path) -> str:
    name, _ = needed("PIL.ImageFont").truetype(str(path)).getname()
    return str(name).split()[0].lower()


def _key(fonts: list[Path]) -> str:
    """Hash all that the drawings depend on."""
    drawn_by = version("pillow"), needed("PIL.features").version("freetype2"), _EDITION
    lines = [f"{path.name} {path.stat().st_size}" for path in fonts]
    return hashlib.sha256("\n".join([*map(str, drawn_by), *lines]).encode()).hexdigest()[:16]


def _drawn(fonts: list[Path]) -> Tensor:
    """Draw the letters: one row a font, and in it one image a letter."""
    typeface = needed("PIL.ImageFont")
    rows = []
    with progress("drawing glyphs", len(fonts)) as advance:
        for path in fonts:
            # The basic layout is in every build of Pillow.
            basic = typeface.Layout.BASIC
            font = typeface.truetype(str(path), _POINTS, layout_engine=basic)
            rows.append([_glyph(font, letter) for letter in LETTERS])
            advance(1)
    return torch.from_numpy(np.array(rows))


def _glyph(font: Any, letter: str) -> NDArray[np.uint8]:
    image = needed("PIL.Image")
    left, top, right, bottom = font.getbbox(letter)
    drawn = image.new("L", (right - left, bottom - top))
    needed("PIL.ImageDraw").Draw(drawn).text((-left, -top), letter, fill=255, font=font)
    ink = drawn.crop(drawn.getbbox())
    scale = (_SIDE - 2 * _MARGIN) / max(ink.size)
    width, height = (max(1, round(scale * side)) for side in ink.size)
    scaled = ink.resize((width, height), image.Resampling.LANCZOS)
    whole = image.new("L", (_SIDE, _SIDE))
    whole.paste(scaled, ((_SIDE - width) // 2, (_SIDE - height) // 2))
    return np.asarray(whole)


def _tensors(pixels: Tensor) -> Tensors:
    fonts, letters = pixels.shape[:2]
    images = pixels.float().reshape(-1, 1, _SIDE, _SIDE)
    return Tensors(images, torch.arange(letters).repeat(fonts))
