"""Whatever the output is connected to: numbers are whole, and the page is there."""

import os
import pty
import re
import struct
import subprocess
import sys
import termios
from fcntl import ioctl
from pathlib import Path

import pytest

from helpers import synthetic_studies as studies
from helpers.synthetic_studies import outcome
from steppe._shared.printable import encodable, printable

pytestmark = pytest.mark.thorough

TIMEOUT_S = 240


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Write a study of names and numbers of all lengths, with a negative gap."""
    runs = {
        "dualadam-scale-free+sam": [outcome(0.97654, 0.05, 0.123456), outcome(0.98321, 0.06)] * 2,
        "adamw": [outcome(0.9, 0.31), outcome(0.91, 0.32)] * 2,
    }
    path = tmp_path / "study.json"
    studies.study(runs).save(path)
    return path


def report(study: Path, *, stdout: int, **environment: str) -> "subprocess.CompletedProcess[bytes]":
    found = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    found.pop("COLUMNS", None)
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "steppe", "report", str(study)],
        stdout=stdout,
        stderr=subprocess.PIPE,
        timeout=TIMEOUT_S,
        env=found | {name: environment[name] for name in ("COLUMNS",) if name in environment},
        check=False,
    )


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_any_encoding_can_show_numbers(encoding: str, study: Path) -> None:
    done = report(study, stdout=subprocess.PIPE, PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode(encoding)
    minus = "−" if encoding == "utf-8" else "-"
    assert f"{minus}0.0567" in text  # the mean gap
    assert "?" not in text
    assert study.with_name("report.html").is_file()


def test_the_c_locale_will_do(study: Path) -> None:
    settings = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = report(study, stdout=subprocess.PIPE, **settings)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.isascii()


def on_terminal(study: Path, columns: int, term: str) -> list[str]:
    """Return the lines that a terminal of that many columns gets."""
    control, terminal = pty.openpty()
    ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    done = report(study, stdout=terminal, TERM=term, PYTHONIOENCODING="utf-8")
    os.close(terminal)
    found = b""
    try:
        while chunk := os.read(control, 1 << 16):
            found += chunk
    except OSError:
        pass  # the other end is closed
    os.close(control)
    assert done.returncode == 0, done.stderr
    return re.sub(r"\x1b\[[0-9;?]*\w", "", found.decode()).splitlines()


@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_a_narrow_terminal_cuts_no_number(term: str, study: Path) -> None:
    wide, narrow = (on_terminal(study, columns, term) for columns in (200, 40))
    # The path of the page is one piece, which the terminal breaks.
    tables = [line for line in narrow if not line.startswith("Page: ")]
    assert max(map(len, tables)) <= 40
    assert not any("…" in line for line in tables)

    def numbers(lines: list[str]) -> list[str]:
        return sorted(re.findall(r"[−+]?\d+\.\d+(?!\w)", "\n".join(lines)))

    assert numbers(narrow) == numbers(wide)


def test_a_closed_pipe_stops_nothing(study: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = report(study, stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")
    assert study.with_name("report.html").is_file()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device")
def test_a_full_disk_is_told_and_stops_nothing(study: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        done = report(study, stdout=full.fileno())
    assert done.returncode == 0
    assert re.fullmatch(rb"steppe: standard output cannot be written: [^\n]*\n", done.stderr)
    assert study.with_name("report.html").is_file()


def test_where_no_page_can_be_written_the_tables_are_printed(study: Path) -> None:
    study.with_name("report.html").mkdir()
    done = report(study, stdout=subprocess.PIPE)
    assert done.returncode == 2
    assert b"dualadam-scale-free+sam" in done.stdout
    assert done.stderr.count(b"\n") == 1


def test_what_cannot_be_printed_is_written_in_plain_letters() -> None:
    assert encodable("−1 ± λ…", "latin-1") == "-1 ± lambda..."
    assert encodable("−1 λ… é", "utf-8") == "−1 λ… é"
    assert encodable("a\udc80", "utf-8") == "a\\udc80"
    assert printable("a\x1b[0m\r\n\u202e\ud800λ é") == "a\\x1b[0m\\r\\n\\u202e\\ud800λ é"
