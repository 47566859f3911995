"""The README of the CPU engine names its files, and quotes docs/engines.md rightly."""

import re
from pathlib import Path

import steppe

ROOT = Path(__file__).parents[2]
CPU = Path(steppe.__file__).parent / "_engines" / "cpu"
README = (CPU / "README.md").read_text()
ENGINES = (ROOT / "docs" / "engines.md").read_text()


def rows(text: str) -> dict[str, list[str]]:
    """Return the cells of all tables' rows, by their first cell."""
    lines = [line.strip("| ").split("|") for line in text.splitlines() if line.startswith("| ")]
    return {first.strip(): [cell.strip() for cell in rest] for first, *rest in lines}


def test_each_file_is_explained() -> None:
    named = {first.strip("`") for first in rows(README) if first.startswith("`")}
    assert named == {path.name for path in CPU.glob("*.py")} - {"__init__.py"}


def test_times_are_those_measured() -> None:
    quoted = {first: cells for first, cells in rows(README).items() if first.startswith("DualAdam")}
    assert len(quoted) == 4
    measured = rows(ENGINES)
    for name, (large, *small) in quoted.items():
        assert measured[name][0].split()[0] == large
        assert small == [] or measured[name][2] == small[0]


def test_numbers_in_the_text_are_those_measured() -> None:
    for number in ("28 bytes", "1.3 s", "3.5 s", "7 to 20 ms", "16 384 elements"):
        assert re.sub(r"\s+", " ", README).count(number)
        assert re.sub(r"\s+", " ", ENGINES).count(number), number
