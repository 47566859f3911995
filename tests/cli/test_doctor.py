"""What the doctor finds."""

import io
import tomllib
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch

import steppe
from helpers.optimizer_configs import CONFIGS, parameters
from steppe._engines.cpu import compile_cache
from steppe.cli import kernel_warming, main
from steppe.cli.doctor import doctor
from steppe.cli.machine import devices, engine_of, installed
from steppe.compare.records.choices import TRACKERS

PROJECT = Path(__file__).parents[2] / "pyproject.toml"


def rows() -> dict[str, list[str]]:
    written = io.StringIO()
    with redirect_stdout(written):
        doctor()
    lines = [line.split() for line in written.getvalue().splitlines()]
    return {words[0]: words[1:] for words in lines if words}


def test_every_optimizer_of_steppe_is_listed_with_its_engine() -> None:
    found = rows()
    for name in steppe.__all__:
        if name == "SAM":  # goes around the others
            continue
        assert found[name][0] == engine_of(name.lower(), torch.device("cpu"))


def test_every_package_that_something_needs_is_listed() -> None:
    project = tomllib.loads(PROJECT.read_text())["project"]
    extras = project["optional-dependencies"]
    named = list(project["dependencies"])
    for extra in ("compare", "language", "optimizers", "postgresql", "vision"):
        named += extras[extra]
    packages = {line.partition(">")[0].partition("[")[0] for line in named}
    assert {*packages, *TRACKERS, "pytorch-optimizer"} <= rows().keys()


def test_versions_are_those_of_the_packages() -> None:
    assert torch.__version__.startswith(installed("torch") or "nothing")
    assert installed("no-such-package-anywhere") is None
    assert rows()["steppe"][0] == steppe.__version__


def test_the_cpu_is_always_there() -> None:
    assert devices()[0] == torch.device("cpu")


def test_warming_takes_a_step_with_each_rule_and_format(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    stepped = []
    monkeypatch.setattr(kernel_warming, "_take_steps", lambda *choice: stepped.append(choice))
    doctor(warm=True)
    methods, formats = set(), set()
    for cls, options, dtype, *_ in stepped:
        optimizer = cls(parameters(dtype), **options)
        methods.add(optimizer._method(optimizer.param_groups[0]).rule)
        formats.add((dtype, options.get("state_dtype"), options.get("param_error")))
    for config in CONFIGS:
        optimizer = config(parameters())
        assert optimizer._method(optimizer.param_groups[0]).rule in methods
    for wanted in (None, torch.bfloat16, "int8"):
        assert (torch.float32, wanted, None) in formats
    assert (torch.bfloat16, "int8", "int8") in formats
    assert f"{tmp_path / 'steppe'} has the CPU kernels of all optimizers" in capsys.readouterr().out


@pytest.mark.thorough
def test_later_processes_find_what_has_been_warmed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    choice = (steppe.InvAdam, {"state_dtype": None}, torch.float32)
    monkeypatch.setattr(kernel_warming, "_choices", lambda: iter([choice]))
    # Some tests of this process may have compiled them.
    for kernel in (compile_cache.update_kernel, compile_cache.norm_kernel):
        kernel.cache_clear()
    compile_cache.slot_kernel.cache_clear()
    main(["doctor", "--warm"])
    kept = {path.stem.rpartition("_")[0] for path in (tmp_path / "steppe").glob("*.o")}
    # What reads tensors is compiled once in a process, and where torch has what it calls; and so is
    # what chooses the width of vectors, where there is a choice.
    kept -= {"steppe_facts", "steppe_vectors_0", "steppe_vectors_512"}
    buffers = {"steppe_norm_float32", "steppe_adam_cm_float32", "steppe_slots_float32"}
    assert kept == {"steppe_inv_adam_float32", *buffers}


def test_warming_fails_where_nothing_can_be_compiled_or_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(SystemExit, match="kernels cannot be kept"):
        doctor(warm=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr("numba.core.config.DISABLE_JIT", True)
        with pytest.raises(SystemExit, match=r"cannot be compiled: .*JIT"):
            doctor(warm=True)
    monkeypatch.setattr(kernel_warming, "_choices", lambda: iter(()))
    monkeypatch.setattr(kernel_warming, "_take_steps", lambda *choice: None)
    monkeypatch.setattr(kernel_warming, "unkept_kernels", {"adam": "No space left on device"})
    with pytest.raises(SystemExit, match="not kept: No space left"):
        doctor(warm=True)
