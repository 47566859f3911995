"""Kernels on disk: only whole files that nobody else can write are loaded, and none is needed."""

import logging
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
import torch
from numba.core.compiler_lock import global_compiler_lock

from helpers.warm_python import run, start
from steppe import rules
from steppe._engines import Method
from steppe._engines.cpu import compile_cache
from steppe._engines.cpu.kernel_files import kernel_directory, read_kernel, write_kernel
from steppe._engines.cpu.operands import Formats
from steppe._engines.cpu.vector_width import wide_vectors
from steppe.optim._base import RuleOptimizer

MADE_OF = bytes(range(32))
CONTENT = b"machine code"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the empty cache of a test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "steppe"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Write a whole file."""
    write_kernel(tmp_path / "kernel.o", MADE_OF, CONTENT, "source")
    assert read_kernel(tmp_path / "kernel.o", MADE_OF) == CONTENT
    return tmp_path / "kernel.o"


@pytest.fixture
def give_away(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Return what makes a path another user's."""

    def give(path: Path) -> None:
        if os.geteuid() == 0:
            os.chown(path, 12345, -1, follow_symlinks=False)
        else:
            monkeypatch.setattr(os, "geteuid", lambda: 12345)

    return give


# Files


def test_a_file_with_any_bit_flipped_is_not_read(file: Path) -> None:
    whole = file.read_bytes()
    for i in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[i // 8] ^= 1 << i % 8
        file.write_bytes(damaged)
        assert read_kernel(file, MADE_OF) is None
    file.write_bytes(whole)
    assert read_kernel(file, MADE_OF) == CONTENT


def test_a_file_that_is_cut_or_too_long_or_of_zeros_is_not_read(file: Path) -> None:
    whole = file.read_bytes()
    for damaged in [whole[:n] for n in range(len(whole))] + [whole + b"\0", bytes(len(whole))]:
        file.write_bytes(damaged)
        assert read_kernel(file, MADE_OF) is None


def test_another_kernels_whole_file_is_not_read(file: Path) -> None:
    assert read_kernel(file, MADE_OF[::-1]) is None


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666])
def test_a_file_that_others_may_write_is_not_read(file: Path, mode: int) -> None:
    file.chmod(mode)
    assert read_kernel(file, MADE_OF) is None


def test_another_users_file_is_not_read(file: Path, give_away: Callable[[Path], None]) -> None:
    give_away(file)
    assert read_kernel(file, MADE_OF) is None


def test_links_pipes_and_directories_are_not_read(file: Path, tmp_path: Path) -> None:
    link, pipe = tmp_path / "link.o", tmp_path / "pipe.o"
    link.symlink_to(file)
    os.mkfifo(pipe)
    for path in (link, pipe, tmp_path, tmp_path / "nothing"):
        assert read_kernel(path, MADE_OF) is None
    for path in (link, pipe):
        write_kernel(path, MADE_OF, CONTENT, "source")
        assert read_kernel(path, MADE_OF) == CONTENT
    assert not link.is_symlink()


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o022, 0o077])
def test_a_written_file_can_be_read_again_under_any_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_kernel(tmp_path / "kernel.o", MADE_OF, CONTENT, "source")
    finally:
        os.umask(before)
    assert read_kernel(tmp_path / "kernel.o", MADE_OF) == CONTENT
    assert stat.S_IMODE((tmp_path / "kernel.o").stat().st_mode) == 0o666 & ~umask & ~0o022


def test_a_file_is_flushed_before_it_is_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flush, path = os.fsync, tmp_path / "kernel.o"
    whole = []

    def note(descriptor: int) -> None:
        whole.append((os.fstat(descriptor).st_size, path.exists()))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    write_kernel(path, MADE_OF, CONTENT, "source")
    assert whole == [(path.stat().st_size, False)]


def test_a_file_that_cannot_be_written_leaves_what_was_there(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_kernel(file, MADE_OF, b"other", "source")
    assert read_kernel(file, MADE_OF) == CONTENT
    assert sorted(path.name for path in file.parent.iterdir()) == ["kernel.o", "kernel.py"]


def test_readers_beside_writers_find_nothing_or_all(tmp_path: Path) -> None:
    path, content = tmp_path / "kernel.o", bytes(100_000)

    def write() -> None:
        for _ in range(20):
            write_kernel(path, MADE_OF, content, "source")

    writers = [threading.Thread(target=write) for _ in range(3)]
    for each in writers:
        each.start()
    found = set()
    while any(each.is_alive() for each in writers):
        there = path.exists()
        found.add((there, read_kernel(path, MADE_OF) == content))
    assert (True, False) not in found
    assert read_kernel(path, MADE_OF) == content


# The directory


@pytest.mark.parametrize("unset", [None, "", "relative/path"])
def test_the_directory_is_in_the_home_where_no_other_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unset: str | None
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if unset is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
    assert kernel_directory() == tmp_path / ".cache" / "steppe"


def test_a_home_that_is_not_there_is_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    for home in (str(tmp_path / "nobody"), "relative"):
        monkeypatch.setenv("HOME", home)
        with pytest.raises(FileNotFoundError, match="is not there"):
            kernel_directory()
    assert list(tmp_path.iterdir()) == []


def no_user() -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_a_user_without_a_home_has_no_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_user)
    with pytest.raises(OSError, match="determine home"):
        kernel_directory()


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o1777])
def test_a_directory_that_others_may_write_is_refused(cache: Path, mode: int) -> None:
    cache.mkdir(parents=True)
    cache.chmod(mode)
    with pytest.raises(PermissionError, match="may be written by other users: chmod go-w"):
        kernel_directory()
    cache.chmod(0o755)
    assert kernel_directory() == cache


@pytest.mark.parametrize("where", ["itself", "above", "link"])
def test_another_users_directory_is_refused(
    cache: Path, where: str, give_away: Callable[[Path], None], tmp_path: Path
) -> None:
    (cache if where == "itself" else cache.parent).mkdir(parents=True)
    if where == "link":
        (tmp_path / "own").mkdir()
        cache.symlink_to(tmp_path / "own")
    give_away(cache.parent if where == "above" else cache)
    with pytest.raises(PermissionError, match="belongs to another user"):
        kernel_directory()


def test_a_link_of_ones_own_to_a_directory_is_followed(cache: Path, tmp_path: Path) -> None:
    cache.parent.mkdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    cache.symlink_to(tmp_path / "elsewhere")
    assert kernel_directory() == cache


# Kernels


def norm_kernel() -> compile_cache.Native:
    """Load or compile a small kernel, as a new process would."""
    return compile_cache.norm_kernel.__wrapped__("float32", False)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the kernels that are compiled from here on."""
    # Measured once in a process, by kernels of its own.
    wide_vectors()
    names: list[str] = []
    compile = compile_cache._Source.compile

    def note(source: Any) -> Any:
        names.append(source.name)
        return compile(source)

    monkeypatch.setattr(compile_cache._Source, "compile", note)
    monkeypatch.setattr(compile_cache, "unkept_kernels", {})
    return names


def test_a_broken_file_is_made_anew(cache: Path, compiled: list[str]) -> None:
    norm_kernel()
    (file,) = cache.glob("*.o")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2))
    norm_kernel()
    assert len(compiled) == 2
    assert norm_kernel().call is not None
    assert len(compiled) == 2
    assert read_kernel(file, whole[32:64]) is not None


def in_the_way_a_file(cache: Path) -> None:
    cache.parent.mkdir()
    cache.touch()


def in_the_way_directories(cache: Path) -> None:
    norm_kernel()
    for file in cache.iterdir():
        file.unlink()
        file.mkdir()


def not_allowed(cache: Path) -> None:
    cache.mkdir(parents=True)
    cache.chmod(0o777)


@pytest.mark.thorough
@pytest.mark.parametrize("spoil", [in_the_way_a_file, in_the_way_directories, not_allowed])
def test_where_nothing_can_be_kept_kernels_are_compiled_and_that_is_said(
    cache: Path,
    compiled: list[str],
    caplog: pytest.LogCaptureFixture,
    spoil: Callable[[Path], None],
) -> None:
    spoil(cache)
    caplog.clear()
    norm_kernel()
    assert compile_cache.unkept_kernels.keys() == {"norm_float32"}
    assert "not kept: " in caplog.text
    assert "norm_float32" in compiled


def test_compiling_is_announced_once_and_each_time_told_in_seconds(
    cache: Path, compiled: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    compile_cache._announce.cache_clear()
    for _ in range(2):
        norm_kernel()
    compile_cache.slot_kernel.__wrapped__("float32")
    first, *others = caplog.messages
    assert "compiling CPU kernels" in first
    assert [text.split(" in ")[0] for text in others] == [
        "steppe has compiled norm_float32",
        "steppe has compiled slots_float32",
    ]
    assert {(r.name, r.levelno) for r in caplog.records} == {("steppe", logging.WARNING)}


def test_a_fork_waits_until_another_thread_has_compiled(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the child that thread is gone: Numba's lock, if it held that, would be held for ever."""
    compiling, go_on = threading.Event(), threading.Event()
    compiled = compile_cache._Source.compile

    def slowly(source: Any) -> Any:
        with global_compiler_lock:
            compiling.set()
            go_on.wait(60)
            return compiled(source)

    monkeypatch.setattr(compile_cache._Source, "compile", slowly)
    thread = threading.Thread(target=norm_kernel)
    thread.start()
    compiling.wait(60)
    threading.Timer(0.3, go_on.set).start()
    child = os.fork()
    if child == 0:
        is_free = global_compiler_lock._lock.acquire(timeout=10)  # in seconds
        os._exit(0 if is_free else 1)
    assert os.waitpid(child, 0)[1] == 0
    go_on.set()
    thread.join(60)
    norm_kernel()  # and the parent goes on


def redefined(factor: float, module: dict[str, Any]) -> Any:
    """Define a rule in a module of its own, with a helper."""
    exec(
        f"def helper(g): return g * {factor}\n"
        "def moved(p, g, m, lr): return p - lr * helper(g), m + g\n"
        "def scalars(t, lr): return (lr,)\n",
        module,
    )
    return Method(module["moved"], ("exp_avg",), module["scalars"])


def digest(method: Method) -> bytes:
    formats = Formats("float32", ("float32",) * len(method.state))
    source = compile_cache.update_source(method, formats)
    functions = compile_cache.rules_of(method, formats)
    return compile_cache._Source("name", "update", source, functions).digest()


def test_a_rule_in_another_module_runs_and_a_change_of_its_helper_is_noticed(
    cache: Path, compiled: list[str]
) -> None:
    module: dict[str, Any] = {"__name__": "somewhere"}
    for factor in (1.0, 2.0, 1.0):
        method = redefined(factor, module)

        class Moved(RuleOptimizer):
            def __init__(self, params: Any, lr: float) -> None:
                options = {"maximize": False, "fused": True, "state_dtype": None}
                super().__init__(
                    params, {"lr": lr, **options, "capturable": False, "differentiable": False}
                )

            def _method(self, group: dict[str, Any], method: Method = method) -> Method:
                return method

        p = torch.ones(3, requires_grad=True)
        p.grad = torch.ones(3)
        Moved([p], lr=0.25).step()
        assert p.tolist() == [1.0 - 0.25 * factor] * 3
    # In a process that has taken no step before, what reads tensors is compiled too.
    assert [name for name in compiled if name != "facts"] == ["moved_float32"] * 2


def test_a_key_is_the_same_in_every_process_and_tells_rules_apart() -> None:
    methods = [redefined(factor, {"__name__": "somewhere"}) for factor in (1.0, 1.0, 2.0)]
    one, again, other = map(digest, methods)
    assert one == again != other


def test_a_rule_with_another_constant_or_default_has_another_key() -> None:
    def variant(rule: FunctionType, **changes: Any) -> Method:
        code = rule.__code__.replace(**changes)
        function = FunctionType(code, rule.__globals__, rule.__name__, rule.__defaults__)
        return Method(function, ("exp_avg", "exp_avg_sq"), rules.adam_scalars)

    assert digest(variant(rules.inv_adam)) == digest(variant(rules.inv_adam))
    changed = variant(rules.inv_adam, co_consts=(*rules.inv_adam.__code__.co_consts, 2.0))
    assert digest(changed) != digest(variant(rules.inv_adam))


# Processes

STEP = """
import os, resource, signal, sys
import torch, steppe
what = sys.argv[1]
if what == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
if what == "killed":
    os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
p = torch.nn.Parameter(torch.ones(5))
p.grad = torch.ones(5)
steppe.InvAdam([p], lr=0.5, eps=0.0, fused=True).step()
os.write(1, f"{p.tolist()}".encode())
"""
RESULT = "[0.5, 0.5, 0.5, 0.5, 0.5]"


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "step.py").write_text(STEP)
    return tmp_path / "step.py"


@pytest.mark.thorough
def test_a_process_killed_while_it_writes_leaves_nothing_that_is_loaded(
    script: Path, tmp_path: Path
) -> None:
    killed = start(script, "killed", XDG_CACHE_HOME=str(tmp_path))
    killed.wait(300)
    assert killed.returncode == -signal.SIGKILL
    assert not list((tmp_path / "steppe").glob("*.o"))
    first, second = (run(script, "", XDG_CACHE_HOME=str(tmp_path)) for _ in range(2))
    assert first == second == RESULT
    assert len(list((tmp_path / "steppe").glob("steppe_inv_adam_float32_*.o"))) == 1


@pytest.mark.thorough
def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    """Also where torch itself finds no place for temporary files; in a process that has none."""
    cache, temporary = tmp_path / "cache", tmp_path / "temporary"
    temporary.mkdir()
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", STEP, "full"],
        env={**os.environ, "XDG_CACHE_HOME": str(cache), "TMPDIR": str(temporary)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, RESULT), done.stderr
    first, *others = done.stderr.splitlines()
    assert "steppe is compiling CPU kernels" in first
    assert others
    assert all("not kept: [Errno 27] File too large" in each for each in others)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert {path.name for path in tmp_path.iterdir()} == {"cache", "temporary"}
