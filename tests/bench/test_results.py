"""The file: complete, and whole or not there."""

import json
import re
from pathlib import Path

import pytest
import torch

from steppe.bench.benchmark import plan_benchmark
from steppe.bench.failure import Failure
from steppe.bench.first_step import FirstStep
from steppe.bench.results import machine_line, write


def test_everything_is_in_the_file(tmp_path: Path, found) -> None:
    setup = plan_benchmark(["tiny"], ["dualadam", "lbfgs"], steps=7, threads=1)
    failure = Failure("tiny", "lbfgs", "no closure")
    outcomes = [found(), failure, FirstStep("dualadam", 2.0, 0.5)]
    write(setup, outcomes, tmp_path / "bench.json")
    content = json.loads((tmp_path / "bench.json").read_text())
    assert content["setup"]["optimizers"] == ["adamw-fused", "dualadam", "lbfgs"]
    assert content["setup"]["not_installed"] == []
    assert content["setup"]["steps"] == 7
    (steps,) = content["steps"]
    assert steps["ratio"] == {"value": 0.5, "low": 0.45, "high": 0.56}
    assert not steps["disturbed"]
    assert steps["excess"] == pytest.approx(1.5)
    assert steps["copy_ratio"] == pytest.approx(1 / 3)
    assert content["first_steps"] == [{"optimizer": "dualadam", "compiling": 2.0, "cached": 0.5}]
    assert content["failures"] == [{"block": "tiny", "optimizer": "lbfgs", "reason": "no closure"}]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, found) -> None:
    path = tmp_path / "bench.json"
    path.write_text("old")
    benchmark = plan_benchmark(["tiny"], ["dualadam"], steps=7, threads=1)
    with pytest.raises(ValueError, match="Out of range float values are not JSON compliant"):
        write(benchmark, [found(seconds=float("nan"))], path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_machine_is_named_with_the_versions_of_what_runs() -> None:
    setup = plan_benchmark(["tiny"], ["pytorch-optimizer-dualadam"], threads=3)
    line = machine_line(setup)
    assert ", 3 CPU threads; steppe " in line
    assert f"torch {torch.__version__}" in line
    assert re.search(r", pytorch_optimizer \d", line)
    assert "heavyball" not in line
