"""Configurations name optimizers by their paths: Hydra's, torchtune's and torchtitan's way."""

import importlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import pytest
import torch
from torch import nn

import steppe
from helpers.optimizer_configs import NAMES, equal, values
from steppe.optim import param_groups


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))


def trained(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(torch.ones(2, 3)).square().mean()
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    return values([*model.parameters()])


def hydra_made(text: str, *arguments: Any) -> Any:
    pytest.importorskip("hydra")
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    return instantiate(OmegaConf.create(text), *arguments)


def component(options: dict[str, Any], *arguments: Any) -> Any:
    """Make an object as torchtune does: ``_component_`` is its path, the rest are arguments."""
    path, *rest = options.pop("_component_").split(".")
    found = importlib.import_module(path)
    for name in rest:
        found = getattr(found, name)
    return found(*arguments, **options)


@dataclass
class OptimizerConfig:
    """A section of a torchtitan-like configuration, which a command line fills by its types."""

    path: str = "steppe.DualAdam"
    lr: float = 1e-2
    betas: tuple[float, float] = (0.8, 0.9)
    weight_decay: float = 0.1

    def build(self, params: Any) -> torch.optim.Optimizer:
        return component({"_component_": self.path, **without(asdict(self), "path")}, params)


def without(options: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key != name}


WAYS: dict[str, Callable[[Any], Any]] = {
    "hydra": lambda params: hydra_made(
        "{_target_: steppe.SAM, base: steppe.DualAdam, lr: 0.01, betas: [0.8, 0.9], rho: 0.1}",
        params,
    ),
    "hydra, partial": lambda params: hydra_made(
        "{_target_: steppe.SAM, _partial_: true, base: steppe.DualAdam, lr: 0.01, "
        "betas: [0.8, 0.9], rho: 0.1}"
    )(params),
    "hydra, base of its own": lambda params: hydra_made(
        "{_target_: steppe.SAM, rho: 0.1, base: {_target_: steppe.DualAdam, _partial_: true, "
        "lr: 0.01, betas: [0.8, 0.9]}}",
        params,
    ),
    "component": lambda params: component(
        {
            "_component_": "steppe.SAM",
            "base": "steppe.DualAdam",
            "lr": 0.01,
            "betas": [0.8, 0.9],
            "rho": 0.1,
        },
        params,
    ),
}


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_sam_and_its_base_are_named(way: Callable[[Any], Any], grouped: bool) -> None:
    ours, theirs = network(), network()
    sam = way(param_groups(ours, no_decay=True) if grouped else ours.parameters())
    assert type(sam) is steppe.SAM
    assert type(sam.base_optimizer) is steppe.DualAdam
    by_hand = steppe.SAM(steppe.DualAdam(theirs.parameters(), lr=0.01, betas=(0.8, 0.9)), rho=0.1)
    assert equal(trained(ours, sam), trained(theirs, by_hand))


def test_torchs_base_is_named() -> None:
    text = "{_target_: steppe.SAM, base: torch.optim.AdamW, lr: 0.01}"
    assert type(hydra_made(text, network().parameters()).base_optimizer) is torch.optim.AdamW


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_is_named(name: str) -> None:
    made = hydra_made(f"{{_target_: steppe.{name}, lr: 0.01}}", network().parameters())
    assert type(made) is getattr(steppe, name)
    assert made.param_groups[0]["lr"] == 0.01


def test_groups_are_configured() -> None:
    text = r"""
_target_: steppe.optim.param_groups
no_decay: true
layer_decay: 0.5
lr: 0.01
rules:
  '^2\.': {lr: 0.1, betas: [0.8, 0.9]}
"""
    model = network()
    found = hydra_made(text, model)
    rules = {r"^2\.": {"lr": 0.1, "betas": (0.8, 0.9)}}
    assert found == param_groups(model, rules, no_decay=True, layer_decay=0.5, lr=0.01)


def test_a_dataclass_is_a_configuration() -> None:
    ours, theirs = network(), network()
    optimizer = OptimizerConfig().build(ours.parameters())
    options = {"lr": 1e-2, "betas": (0.8, 0.9), "weight_decay": 0.1}
    truth = trained(theirs, steppe.DualAdam(theirs.parameters(), **options))
    assert equal(trained(ours, optimizer), truth)
