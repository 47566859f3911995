"""Bars on terminals, and nowhere else."""

import os
import pty
import threading
from pathlib import Path

import pytest

from helpers.warm_python import run, start

pytestmark = pytest.mark.thorough

PATIENCE_S = 240

CODE = """
import torch
from steppe.landscape import Operator, trace, top_eigenvalues
from steppe._shared.progress import progress, silent
H = Operator(50, lambda rows: 2 * rows)
with {around}:
    top_eigenvalues(H, 2)
    trace(H, products=30)
"""


def shown(around: str, folder: Path) -> str:
    """Run the code on a terminal; return what came there."""
    leader, follower = pty.openpty()
    (folder / "script.py").write_text(CODE.format(around=around))
    process = start(folder / "script.py", output=follower, TERM="xterm")
    os.close(follower)
    pieces: list[bytes] = []

    def read() -> None:
        try:
            while piece := os.read(leader, 4096):
                pieces.append(piece)
        except OSError:  # how Linux ends a terminal
            return

    reader = threading.Thread(target=read)
    reader.start()
    try:
        process.wait(PATIENCE_S)
    finally:
        process.kill()
    assert process.returncode == 0
    reader.join()
    os.close(leader)
    return b"".join(pieces).decode()


def test_a_terminal_sees_what_is_being_done(tmp_path: Path) -> None:
    text = shown("torch.no_grad()", tmp_path)
    assert "2 eigenvalues" in text
    assert "trace, hutch++" in text


def test_a_program_with_its_own_bar_sees_none(tmp_path: Path) -> None:
    assert shown("silent()", tmp_path) == ""


def test_without_rich_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "rich.py").write_text("raise ImportError('no rich here')")
    assert shown("torch.no_grad()", tmp_path) == ""


def test_elsewhere_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(CODE.format(around="torch.no_grad()"))
    assert run(tmp_path / "script.py") == ""


def test_bars_do_not_nest(tmp_path: Path) -> None:
    assert shown("progress('outer', 1)", tmp_path).count("trace, hutch++") == 0
