"""Checked first, then measured block by block."""

import sys

import pytest
import torch

from steppe.bench.benchmark import execute, plan_benchmark
from steppe.bench.failure import Failure
from steppe.bench.first_step import FirstStep
from steppe.bench.measurement import Measurement


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"models": ["tin"]}, "did you mean tiny"),
        ({"optimizers": ["dualadm"]}, "did you mean dualadam"),
        ({"optimizers": ["nowhere:It"]}, "nowhere:It cannot be imported"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"threads": -2}, "threads must be from 1 to 1024, got -2"),
        ({"threads": 1025}, "threads must be from 1 to 1024, got 1025"),
        ({"device": "abacus"}, "device 'abacus' cannot be used here"),
    ],
    ids=str,
)
def test_mistakes_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_benchmark(**options)


def test_what_is_needed_at_the_end_is_looked_for_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match="matplotlib"):
        plan_benchmark(["tiny"])


def test_names_count_once() -> None:
    benchmark = plan_benchmark(["tiny", "tiny"], ["AdamW-fused", "adamw-fused", "invadam"])
    assert benchmark.models == ("tiny",)
    assert [each.name for each in benchmark.optimizers] == ["adamw-fused", "invadam"]


def test_models_first_then_first_steps_and_failures_stop_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def one(name: str, device: torch.device, threads: int) -> FirstStep:
        asked.append((name, str(device), threads))
        return FirstStep(name, 2.0, 0.5)

    monkeypatch.setattr("steppe.bench.benchmark.first_step", one)
    before = torch.get_num_threads()
    benchmark = plan_benchmark(["tiny"], ["lbfgs", "dualadam"], steps=2, threads=before + 1)
    failed, measured, *firsts = execute(benchmark)
    assert failed == Failure("tiny", "lbfgs", failed.reason)
    assert "closure" in failed.reason
    assert isinstance(measured, Measurement)
    assert measured.numbers == 30
    assert firsts == [FirstStep("lbfgs", 2.0, 0.5), FirstStep("dualadam", 2.0, 0.5)]
    assert asked == [("lbfgs", "cpu", before + 1), ("dualadam", "cpu", before + 1)]
    assert torch.get_num_threads() == before
