"""From names to optimizers."""

import sys
from types import ModuleType

import pytest
import torch

import steppe
from steppe.bench.optimizers import (
    BASELINE,
    MeasuredOptimizer,
    default_names,
    find_measured,
    missing_packages,
)
from steppe.bench.presets import PEERS, TIMING_PRESETS
from steppe.bench.workload import warm_up

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "cls", "options"),
    [
        ("AdamW-fused", torch.optim.AdamW, {"fused": True}),
        ("adamw-for-loop", torch.optim.AdamW, {"foreach": False}),
        ("dualadam-int8", steppe.DualAdam, {"state_dtype": "int8"}),
        (" sgdcm ", steppe.SGDCM, {}),
        ("radam", torch.optim.RAdam, {}),
        ("torch.optim:Adam", torch.optim.Adam, {}),
    ],
)
def test_a_name_is_a_preset_a_class_or_a_path(name: str, cls: type, options: dict) -> None:
    measured = find_measured(name)
    assert measured.cls is cls
    assert measured.options == options


def test_an_unknown_optimizer_is_named() -> None:
    message = "no optimizer is called 'adamw-fusd': did you mean adamw-fused.*package.module:Class"
    with pytest.raises(ValueError, match=message):
        find_measured("adamw-fusd")


@pytest.mark.parametrize(
    ("device", "packages"),
    [
        ("cpu", ("pytorch_optimizer", "heavyball")),
        ("cuda", ("pytorch_optimizer", "heavyball", "torchao", "flashoptim")),
        ("mps", ()),
    ],
)
def test_a_peer_is_measured_where_its_package_is_installed(
    monkeypatch: pytest.MonkeyPatch, device: str, packages: tuple[str, ...]
) -> None:
    where = torch.device(device)
    monkeypatch.setattr("steppe.bench.optimizers.find_spec", lambda name: None)
    assert not PEERS.keys() & {*default_names(where)}
    assert missing_packages(where) == packages
    monkeypatch.setattr("steppe.bench.optimizers.find_spec", lambda name: name)
    assert default_names(where)[0] == BASELINE.name
    peers = PEERS.keys() & {*default_names(where)}
    assert {PEERS[name].package for name in peers} == {*packages}
    assert missing_packages(where) == ()


def test_pytorch_optimizers_peers_are_built_by_name() -> None:
    for name in ("dualadam", "stableadamw", "ademamix"):
        optimizer = find_measured(f"pytorch-optimizer-{name}").build([(7,)], CPU)
        warm_up(optimizer)
        assert type(optimizer).__module__.startswith("pytorch_optimizer.")


@pytest.mark.parametrize("name", sorted(TIMING_PRESETS.keys() - PEERS.keys()))
def test_the_class_takes_the_options_of_a_preset(name: str) -> None:
    optimizer = find_measured(name.upper()).build([(7,)], CPU)
    assert TIMING_PRESETS[name].options.keys() <= optimizer.defaults.keys()


def test_weights_of_24_bits_step_parameters_in_bfloat16() -> None:
    optimizer = find_measured("dualadam-24bit").build([(7,)], CPU)
    warm_up(optimizer)
    (parameter,) = optimizer.param_groups[0]["params"]
    assert (parameter.dtype, parameter.grad.dtype) == (torch.bfloat16, torch.bfloat16)
    (parameter,) = BASELINE.build([(7,)], CPU).param_groups[0]["params"]
    assert parameter.dtype == torch.float32


def test_a_packages_settings_are_those_of_the_last_that_was_built(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    package = ModuleType("package_with_a_switch")
    monkeypatch.setitem(sys.modules, package.__name__, package)
    for value in ("on", None, "on"):
        settings = {"package_with_a_switch:switch": value}
        MeasuredOptimizer("it", torch.optim.SGD, module_settings=settings).build([(7,)], CPU)
        assert package.switch == value


@pytest.mark.parametrize(("name", "stored"), [("adamcm-keeping", 0.0), ("adamcm-replacing", 1.0)])
def test_a_full_buffer_keeps_or_replaces_at_each_step(name: str, stored: float) -> None:
    optimizer = find_measured(name).build([(7,), (3, 2)], CPU)
    warm_up(optimizer)
    assert optimizer.diagnostics()["buffer_fill"] == 5
    before = [int(state["replacements"]) for state in optimizer.state.values()]
    for _ in range(4):
        optimizer.step()
    after = [int(state["replacements"]) for state in optimizer.state.values()]
    assert [b - a for a, b in zip(before, after, strict=True)] == [4 * stored] * 2


@pytest.mark.parametrize(("name", "switched"), [("dualadam", False), ("dualadam-switched", True)])
def test_both_phases_of_dualadam_are_there(name: str, switched: bool) -> None:
    optimizer = find_measured(name).build([(7,)], CPU)
    warm_up(optimizer)
    alpha = optimizer.diagnostics()["alpha"]
    assert alpha == 0.0 if switched else 0.0 < alpha < 1.0
