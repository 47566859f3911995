"""First steps, in processes of their own."""

import subprocess
from pathlib import Path

import pytest
import torch

from steppe.bench.failure import Failure
from steppe.bench.first_step import FirstStep, first_step

pytestmark = pytest.mark.thorough

CPU = torch.device("cpu")


def test_the_first_process_compiles_and_the_second_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    kernels = []
    run = subprocess.run

    def spy(*args, env: dict[str, str], **kwargs) -> subprocess.CompletedProcess[str]:
        cache = Path(env["XDG_CACHE_HOME"])
        kernels.append(set(cache.rglob("*.o")))
        done = run(*args, env=env, **kwargs)
        kernels.append(set(cache.rglob("*.o")))
        return done

    monkeypatch.setattr(subprocess, "run", spy)
    found = first_step("dualadam", CPU, threads=1)
    assert isinstance(found, FirstStep)
    assert found.optimizer == "dualadam"
    empty, compiled, *cached = kernels
    assert not empty
    assert compiled
    assert cached == [compiled, compiled]
    assert not any(map(Path.exists, compiled))
    assert not (tmp_path / "own").exists()


def test_what_fails_there_is_told_here() -> None:
    found = first_step("lbfgs", CPU, threads=1)
    assert isinstance(found, Failure)
    assert found.optimizer == "lbfgs"
    assert found.reason.startswith("TypeError")
    assert "closure" in found.reason
