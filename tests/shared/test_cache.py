"""What is kept in the user's cache is made once, and is whole."""

import os
import signal
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from steppe._engines import kernel_directory
from steppe._shared.cache import cache_directory, cached_directory, cached_tensors

# From Python 3.12 on, for any process that has threads, which torch's has.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

PATIENCE_S = 240

Made = dict[str, Tensor]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "steppe"


@pytest.fixture
def make() -> tuple[Callable[[], Made], list[int]]:
    """Make tensors, and count how often."""
    calls: list[int] = []

    def made() -> Made:
        calls.append(1)
        return {"words": torch.arange(5).int(), "halves": torch.tensor([0.5, -0.0, torch.nan])}

    return made, calls


def assert_same(found: Made, expected: Made) -> None:
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0, equal_nan=True)


def fill(directory: Path) -> None:
    assert not list(directory.iterdir())
    (directory / "deep").mkdir()
    (directory / "deep" / "one").write_text("1")
    (directory / "two").write_text("2")


def files(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): path.read_text()
        for path in directory.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("unset", [None, ""])
def test_the_cache_is_where_the_user_has_it(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unset: str | None
) -> None:
    assert cache_directory() == cache
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    if unset is None:
        monkeypatch.delenv("XDG_CACHE_HOME")
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
    assert cache_directory() == tmp_path / "home" / ".cache" / "steppe"


def test_kernels_may_be_kept_beside_what_is_prepared(cache: Path, make) -> None:
    """Also for users whose new files their group may write."""
    before = os.umask(0o002)
    try:
        cached_tensors("words", make[0])
    finally:
        os.umask(before)
    assert kernel_directory() == cache


def test_tensors_are_made_once(cache: Path, make) -> None:
    made, calls = make
    first = cached_tensors("words-1", made)
    assert_same(cached_tensors("words-1", made), first)
    assert len(calls) == 1
    assert [path.name for path in cache.iterdir()] == ["words-1.pt"]
    cached_tensors("words-2", made)
    assert len(calls) == 2


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04nothing", None], ids=["empty", "other", "cut"])
def test_a_damaged_file_is_made_again(cache: Path, make, damage: bytes | None) -> None:
    made, calls = make
    cached_tensors("words", made)
    path = cache / "words.pt"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if damage is None else damage)
    assert_same(cached_tensors("words", made), made())
    assert len(calls) == 3
    assert_same(cached_tensors("words", made), made())
    assert len(calls) == 4


def test_nothing_in_a_file_is_run(cache: Path, make, capsys: pytest.CaptureFixture[str]) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return print, ("run",)

    made, _ = make
    cache.mkdir(parents=True)
    torch.save({"words": Evil()}, cache / "words.pt")
    assert_same(cached_tensors("words", made), made())
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("damaged", [False, True])
def test_where_nothing_can_be_kept_it_is_made_each_time(
    cache: Path, make, damaged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system that can only be read, whoever asks."""
    made, calls = make
    if damaged:
        cache.mkdir(parents=True)
        (cache / "words.pt").write_bytes(b"PK")

    def refused(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    for name in ("open", "mkdir", "unlink"):
        monkeypatch.setattr(Path, name, refused)
    for count in (1, 2):
        cached_tensors("words", made)
        assert len(calls) == count


def test_what_making_raises_is_raised_and_leaves_nothing(cache: Path, make) -> None:
    def broken() -> Made:
        raise ValueError("no text")

    with pytest.raises(ValueError, match="no text"):
        cached_tensors("words", broken)
    assert not cache.exists()
    made, calls = make
    cached_tensors("words", made)
    assert len(calls) == 1


def test_two_may_find_the_same_file_damaged(
    cache: Path, make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one takes it away between this one's look and what it does then."""
    made, _ = make
    cached_tensors("words", made)
    path = cache / "words.pt"

    def looked(*_: object, **__: object) -> None:
        path.unlink()
        raise ValueError("damaged")

    with monkeypatch.context() as context:
        context.setattr(torch, "load", looked)
        assert_same(cached_tensors("words", made), made())
    assert path.is_file()


def test_a_directory_is_filled_once(cache: Path) -> None:
    found = cached_directory("model-1", fill)
    assert found == cache / "model-1"
    assert files(found) == {"deep/one": "1", "two": "2"}
    assert cached_directory("model-1", None) == found
    assert [path.name for path in cache.iterdir()] == ["model-1"]


def test_a_directory_that_could_not_be_filled_leaves_nothing(cache: Path) -> None:
    def broken(directory: Path) -> None:
        fill(directory)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_directory("model", broken)
    assert not list(cache.iterdir())
    assert files(cached_directory("model", fill)) == {"deep/one": "1", "two": "2"}


def test_another_may_be_faster_to_fill_a_directory(cache: Path) -> None:
    def slow(directory: Path) -> None:
        fill(directory)
        cached_directory("model", fill)

    assert files(cached_directory("model", slow)) == {"deep/one": "1", "two": "2"}
    assert [path.name for path in cache.iterdir()] == ["model"]


def alone(what: Callable[..., object], *arguments: object) -> BaseProcess:
    """Start a process that does this."""
    process = get_context("fork").Process(target=what, args=arguments, daemon=True)
    process.start()
    return process


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_while_writing() -> Made:
    torch.save = lambda made, file: (file.write(b"PK"), file.flush(), die())
    return {"words": torch.arange(5)}


def die_while_filling(directory: Path) -> None:
    fill(directory)
    die()


@pytest.mark.parametrize(
    ("cached", "dying"),
    [(cached_tensors, die_while_writing), (cached_directory, die_while_filling)],
)
def test_a_kill_leaves_nothing_that_counts(
    cache: Path, make, cached: Callable[..., object], dying: Callable[..., object]
) -> None:
    process = alone(cached, "it", dying)
    process.join(PATIENCE_S)
    assert process.exitcode == -signal.SIGKILL
    (left,) = cache.iterdir()
    assert left.name.endswith(".part")
    if cached is cached_directory:
        assert files(cached_directory("it", fill)) == {"deep/one": "1", "two": "2"}
        return
    made, calls = make
    assert_same(cached_tensors("it", made), made())
    assert len(calls) == 2


def both(folder: Path, rank: int) -> None:
    """Make both kinds, in the midst of which each process waits for the other."""

    def meet(stage: str) -> None:
        (folder / f"{stage}{rank}").touch()
        while not (folder / f"{stage}{1 - rank}").exists():
            time.sleep(0.01)

    def made() -> Made:
        meet("made")
        return {"words": torch.arange(5)}

    def filled(directory: Path) -> None:
        fill(directory)
        meet("filled")

    assert cached_tensors("words", made)["words"].tolist() == [0, 1, 2, 3, 4]
    assert files(cached_directory("model", filled)) == {"deep/one": "1", "two": "2"}


def test_two_processes_may_make_the_same_at_once(cache: Path, tmp_path: Path) -> None:
    processes = [alone(both, tmp_path, rank) for rank in range(2)]
    for process in processes:
        process.join(PATIENCE_S)
    assert [process.exitcode for process in processes] == [0, 0]
    assert sorted(path.name for path in cache.iterdir()) == ["model", "words.pt"]
    assert files(cache / "model") == {"deep/one": "1", "two": "2"}
