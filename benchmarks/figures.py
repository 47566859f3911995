"""Draw every figure of ``steppe figure`` anew for docs/, a little smaller.

``python benchmarks/figures.py [NAME …]``, from the checkout's root: a quarter of an hour for all of
them on two cores. The numbers go to ``results/figures``.
"""

import sys
import time
from pathlib import Path
from typing import IO

from PIL import Image
from typer.testing import CliRunner

from steppe.cli.app import app
from steppe.commands.files import write_whole
from steppe.figures.catalogue import NAMES

ROOT = Path(__file__).parents[1]
NUMBERS = ROOT / "results" / "figures"
IMAGES = ROOT / "docs" / "images" / "figures"
_WIDTH = 1500


def shrink(picture: Path, into: Path) -> None:
    """Make a picture narrower."""
    with Image.open(picture) as image:
        height = round(image.height * _WIDTH / image.width)
        small = image.convert("RGB").resize((_WIDTH, height), Image.Resampling.LANCZOS)

    def write(file: IO[bytes]) -> None:
        small.save(file, format="png", optimize=True)

    write_whole(into, write)


def main() -> None:
    """Draw those that are named, or all."""
    for name in sys.argv[1:] or NAMES:
        begun = time.perf_counter()
        done = CliRunner().invoke(app, ["figure", name, "--out", str(NUMBERS)])
        if done.exit_code:
            sys.exit(f"{name}: {done.output}")
        shrink(NUMBERS / f"{name}.png", IMAGES / f"{name}.png")
        print(f"{name}: {time.perf_counter() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    main()
