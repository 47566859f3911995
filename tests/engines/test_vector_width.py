"""Vectors of 512 bits in CPU kernels: taken where they are faster, with no trace in numbers."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import steppe
from steppe._engines.cpu import engine, vector_width

# Compiles for another processor than this one, and prints how often a kernel names each register.
COMPILED_FOR_ICE_LAKE = """
import re
import torch, steppe
from steppe._engines.cpu import compile_cache, vector_width
from steppe._engines.cpu.codegen import update_source
from steppe._engines.cpu.operands import Formats

method = steppe.InvAdam([torch.ones(2)])._method({})
formats = Formats("float32", ("signed8", "square8"))
rules = compile_cache.rules_of(method, formats)

def count(function, text, rules):
    kernel = compile_cache._Source("name", function, text, rules).compile()
    asm = kernel._library.get_asm_str()
    print(len(re.findall("%zmm", asm)), len(re.findall("%ymm", asm)))

for vectors in (0, 512):
    count("update", update_source(method, formats, vectors), rules)
for vectors in (0, 512):
    count("probe", vector_width._source(vectors), {})
"""


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "steppe"


def timed(monkeypatch: pytest.MonkeyPatch, llvms_choice: float, wide: float) -> list[object]:
    """Have the probes take such times; return what is timed."""
    asked: list[Any] = []
    kernels: list[object] = []

    def seconds(kernel: object) -> float:
        if kernel not in kernels:
            kernels.append(kernel)
        asked.append(kernel)
        # Other work makes most of them longer.
        busy = 1.0 if len(asked) > 4 else 0.0
        return busy + (llvms_choice, wide)[kernels.index(kernel)]

    monkeypatch.setattr(vector_width, "_seconds", seconds)
    return asked


def test_wide_vectors_are_taken_where_they_are_faster(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = timed(monkeypatch, 1.0, 0.8)
    assert vector_width.faster_width(512) == 512
    # Kept: another process does not measure.
    timed(monkeypatch, 1.0, 2.0)
    count = len(asked)
    assert vector_width.faster_width(512) == 512
    assert len(asked) == count
    # What is not whole is measured anew.
    (file,) = cache.glob("*.txt")
    file.write_bytes(file.read_bytes()[:-1] + b"9")
    assert vector_width.faster_width(512) == 0


def test_wide_vectors_that_are_hardly_faster_are_left(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed(monkeypatch, 1.0, 0.95)
    assert vector_width.faster_width(512) == 0


def test_where_nothing_can_be_kept_it_is_measured(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.touch()
    timed(monkeypatch, 1.0, 0.5)
    assert vector_width.faster_width(512) == 512


def test_what_this_machine_has_measured_is_kept(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = vector_width.faster_width(128)
    assert found in (0, 128)
    monkeypatch.setattr(vector_width, "_measured", lambda bits: 1 / 0)
    assert vector_width.faster_width(128) == found


def test_processors_without_wide_vectors_measure_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector_width.llvm, "get_host_cpu_features", lambda: {"avx2": True})
    monkeypatch.setattr(vector_width, "faster_width", lambda bits: 1 / 0)
    assert vector_width.wide_vectors.__wrapped__() == 0


@pytest.mark.thorough
def test_the_width_is_compiled_in() -> None:
    """Into kernels, and into what is measured to choose their width."""
    done = subprocess.run(
        [sys.executable, "-c", COMPILED_FOR_ICE_LAKE],
        env={**os.environ, "NUMBA_CPU_NAME": "icelake-server", "NUMBA_CPU_FEATURES": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    counts = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    for (zmm, ymm), (wide_zmm, wide_ymm) in (counts[:2], counts[2:]):
        assert zmm < ymm
        assert wide_zmm > wide_ymm


FORMATS = {
    "float32": (torch.float32, {}),
    "bfloat16": (torch.float32, {"state_dtype": torch.bfloat16}),
    "int8": (torch.float32, {"state_dtype": "int8"}),
    "24 bits": (torch.bfloat16, {"state_dtype": "int8", "param_error": "int8"}),
}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", ["DualAdam", "AdamCM"])
def test_numbers_do_not_depend_on_the_width(
    name: str, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dtype, options = FORMATS[format]
    outcomes = []
    for bits in (0, 128):
        monkeypatch.setattr(engine, "wide_vectors", lambda bits=bits: bits)
        torch.manual_seed(0)
        p = torch.nn.Parameter(torch.randn(5003).to(dtype))
        optimizer = getattr(steppe, name)([p], fused=True, **options)
        for _ in range(7):
            p.grad = torch.randn(5003).to(dtype)
            optimizer.step()
        outcomes.append([p.detach(), *optimizer.state[p].values()])
    for one, other in zip(*outcomes, strict=True):
        assert torch.equal(one, other)
