"""Checked first, then measured block by block."""

import sys

import pytest
import torch

from steppe.bench import optimizers
from steppe.bench.benchmark import execute, plan_benchmark, try_measure
from steppe.bench.failure import Failure
from steppe.bench.first_step import FirstStep
from steppe.bench.measurement import Measurement
from steppe.bench.optimizers import find_measured


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


def test_the_baseline_is_the_first_of_whatever_is_asked_for() -> None:
    benchmark = plan_benchmark(["tiny"], ["invadam", "adamw-fused", "dualadam"])
    names = [each.name for each in benchmark.optimizers]
    assert names == ["adamw-fused", "invadam", "dualadam"]
    assert benchmark.not_installed == ()


def test_a_peer_that_is_broken_is_not_measured_and_that_is_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    find_spec = optimizers.find_spec
    # It is there, and importing it raises.
    monkeypatch.setattr(
        optimizers, "find_spec", lambda name: name == "heavyball" or find_spec(name)
    )
    monkeypatch.setitem(sys.modules, "heavyball", None)
    benchmark = plan_benchmark(["tiny"])
    (failure,) = benchmark.failures
    assert (failure.block, failure.optimizer) == ("import", "heavyball-adamw-eager")
    assert "heavyball:AdamW cannot be imported" in failure.reason
    assert len(benchmark.optimizers) > 10
    with pytest.raises(ValueError, match="heavyball:AdamW cannot be imported"):
        plan_benchmark(["tiny"], ["heavyball-adamw-eager"])


def test_host_models_are_measured_without_copies() -> None:
    found = try_measure("tiny-host", find_measured("dualadam"), 2, torch.device("cpu"))
    assert isinstance(found, Measurement)
    assert found.bandwidth is None


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
    baseline, failed, measured, *firsts = execute(benchmark)
    assert baseline.optimizer == "adamw-fused"
    assert failed == Failure("tiny", "lbfgs", failed.reason)
    assert "closure" in failed.reason
    assert isinstance(measured, Measurement)
    assert measured.numbers == 30
    names = ["adamw-fused", "lbfgs", "dualadam"]
    assert firsts == [FirstStep(name, 2.0, 0.5) for name in names]
    assert asked == [(name, "cpu", before + 1) for name in names]
    assert torch.get_num_threads() == before
