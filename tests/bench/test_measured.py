"""From names to optimizers."""

import sys

import pytest
import torch

import steppe
from steppe.bench.optimizers import BASELINE, default_names, find_measured
from steppe.bench.workload import parameters, warm_up

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


def test_a_peer_is_measured_if_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_names()[0] == BASELINE.name
    assert default_names()[-1] == "pytorch_optimizer:DualAdam"
    monkeypatch.delitem(sys.modules, "pytorch_optimizer", raising=False)
    monkeypatch.setattr("steppe.bench.optimizers.find_spec", lambda name: None)
    assert all(":" not in name for name in default_names())


@pytest.mark.parametrize(("name", "stored"), [("adamcm-keeping", 0.0), ("adamcm-replacing", 1.0)])
def test_a_full_buffer_keeps_or_replaces_at_each_step(name: str, stored: float) -> None:
    optimizer = find_measured(name).build(parameters([(7,), (3, 2)], CPU))
    warm_up(optimizer)
    assert optimizer.diagnostics()["buffer_fill"] == 5
    before = [int(state["replacements"]) for state in optimizer.state.values()]
    for _ in range(4):
        optimizer.step()
    after = [int(state["replacements"]) for state in optimizer.state.values()]
    assert [b - a for a, b in zip(before, after, strict=True)] == [4 * stored] * 2


@pytest.mark.parametrize(("name", "switched"), [("dualadam", False), ("dualadam-switched", True)])
def test_both_phases_of_dualadam_are_there(name: str, switched: bool) -> None:
    optimizer = find_measured(name).build(parameters([(7,)], CPU))
    warm_up(optimizer)
    alpha = optimizer.diagnostics()["alpha"]
    assert alpha == 0.0 if switched else 0.0 < alpha < 1.0
