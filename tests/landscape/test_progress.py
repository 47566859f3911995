"""Bars on terminals, and nowhere else."""

import os
import pty
import subprocess
import sys
import threading

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


def shown(around: str, environment: dict[str, str]) -> str:
    """Run the code with standard error on a terminal; return what came there."""
    leader, follower = pty.openpty()
    command = [sys.executable, "-c", CODE.format(around=around)]
    process = subprocess.Popen(
        command, stderr=follower, env={**os.environ, "TERM": "xterm", **environment}
    )
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
        assert process.wait(timeout=PATIENCE_S) == 0
    finally:
        process.kill()
    reader.join()
    os.close(leader)
    return b"".join(pieces).decode()


def test_a_terminal_sees_what_is_being_done() -> None:
    text = shown("torch.no_grad()", {})
    assert "2 eigenvalues" in text
    assert "trace, hutch++" in text


def test_a_program_with_its_own_bar_sees_none() -> None:
    assert shown("silent()", {}) == ""


def test_without_rich_there_is_none(tmp_path) -> None:
    (tmp_path / "rich.py").write_text("raise ImportError('no rich here')")
    assert shown("torch.no_grad()", {"PYTHONPATH": str(tmp_path)}) == ""


def test_elsewhere_there_is_none() -> None:
    command = [sys.executable, "-c", CODE.format(around="torch.no_grad()")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout == ""


def test_bars_do_not_nest() -> None:
    assert shown("progress('outer', 1)", {}).count("trace, hutch++") == 0
