"""What README and the pages beside it say runs as printed."""

import re
from pathlib import Path

import pytest

from helpers.warm_python import run

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [
    block
    for page in PAGES
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
]


@pytest.mark.parametrize("code", BLOCKS)
def test_python_blocks_run(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As torchrun starts a script in one process, on any port that is free.
    place = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    (tmp_path / "block.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    run(tmp_path / "block.py", **place)


def test_there_is_python_to_run() -> None:
    assert len(BLOCKS) >= 4
