"""Files are written whole, and nothing else is put in the place of what is no file."""

import os
import threading
from pathlib import Path

import pytest

from steppe._shared.files import write_text, write_whole


def test_a_link_stays_one_and_its_file_is_written_whole(tmp_path: Path) -> None:
    target, link = tmp_path / "there" / "page", tmp_path / "page"
    link.symlink_to(target)
    for text in ("one", "two"):
        write_text(link, text)
        assert link.is_symlink()
        assert target.read_text() == text
    with pytest.raises(ZeroDivisionError):
        write_whole(link, lambda file: 1 / 0)
    assert target.read_text() == "two"
    assert sorted(each.name for each in tmp_path.rglob("*")) == ["page", "page", "there"]


def test_a_pipe_is_written_into(tmp_path: Path) -> None:
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    write_text(pipe, "through")
    reader.join(10)
    assert read == ["through"]
    assert pipe.is_fifo()


def test_a_directory_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(IsADirectoryError, match=tmp_path.name):
        write_text(Path(), "")
    assert not any(tmp_path.parent.glob(f"{tmp_path.name}.*"))
